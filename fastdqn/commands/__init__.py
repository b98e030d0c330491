"""One file per further command: a `Flags` dataclass, its help, and `main(flags)`, which returns the exit code.

A module imports torch, EnvPool and matplotlib inside its functions, so that `--help` stays fast.
"""

import json
import sys
from typing import Any


def emit(text: str, figures: Any, *, as_json: bool) -> None:
    """Text for people on stdout; with `as_json` on stderr instead, and one JSON object as the last line of stdout."""
    print(text, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(figures), flush=True)
