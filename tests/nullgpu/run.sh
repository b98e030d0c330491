#!/bin/bash
# run.sh COMMAND...: runs it where every Python sees a null GPU, built in $NULLGPU (./.nullgpu).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
NULLGPU=$(cd "${NULLGPU:-./.nullgpu}" && pwd)
export NULLGPU TRITON_LIBCUDA_PATH=$NULLGPU
export TORCHINDUCTOR_CACHE_DIR=$NULLGPU/cache TRITON_CACHE_DIR=$NULLGPU/cache/triton  # its "tuned" kernels stay apart
export PYTHONPATH=$here/site:$here/../..${PYTHONPATH:+:$PYTHONPATH}
exec "$@"
