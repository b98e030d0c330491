#!/bin/bash
# build.sh PYTHON_OR_SITE_PACKAGES [BUILD=./.nullgpu]: the null GPU for the CUDA build of torch found there.
# PYTHON_OR_SITE_PACKAGES is an interpreter that has torch, or the folder with torch/ and nvidia/ in it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n 2,3p "$0"; exit 2; }
if [ -d "$1" ]; then site=$1; else site=$("$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); fi
out=${2:-./.nullgpu}
mkdir -p "$out"

# cuDNN's and CUPTI's headers lie beside torch, the compiler's (crt/) only in a toolkit
if [ -n "${CUDA_HOME:-}" ]; then toolkit=-I$CUDA_HOME/include
else toolkit=$(nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ INCLUDES="\(.*\)".*/\1/p' | tr -d '"'); fi
[ -n "$toolkit" ] || { echo "no CUDA headers: set CUDA_HOME, or put nvcc on the PATH" >&2; exit 1; }

imported() {  # what torch imports from the library of this name
  nm -D --undefined-only "$site"/torch/lib/*.so 2> /dev/null | grep -oE "[A-Za-z_0-9]+@$1" | sed 's/@.*//' | sort -u
}
own='^cublas(Create|Destroy|Set(Stream|Workspace|MathMode|PointerMode)|Get(MathMode|PointerMode))'
imported libcublas.so | grep -vE "$own" | sed 's/.*/BLAS(&)/' > "$out/blas.inc"

g++ -std=c++17 -O1 -g -fPIC -shared -fvisibility=hidden -Wall -Wno-deprecated-declarations -Wno-missing-field-initializers \
  $toolkit -I"$out" -I"$site"/nvidia/cu13/include -I"$site"/nvidia/cudnn/include \
  "$here/nullgpu.cpp" -o "$out/new.so" -ldl -lpthread -Wl,-soname,libnullgpu.so
mv "$out/new.so" "$out/libnullgpu.so"
# Triton links with libcuda.so.1, and torch looks it up by name: one that only depends on the library above
echo 'int nullgpu_is_libcuda;' | gcc -shared -fPIC -x c - -o "$out/libcuda.so.1" \
  -Wl,-soname,libcuda.so.1 -Wl,--no-as-needed -L"$out" -lnullgpu -Wl,-rpath,'$ORIGIN'
ln -sf libcuda.so.1 "$out/libcuda.so"

missing=$(comm -23 <(imported 'libcudart') <(nm -D --defined-only "$out/libnullgpu.so" | awk '{print $3}' | sort -u))
[ -z "$missing" ] || echo "this torch imports from the CUDA runtime what the null GPU lacks:" $missing >&2
echo "built in $out"
