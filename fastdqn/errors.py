"""What ends a command: one line that says what is wrong and what helps. `cli.main` prints it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """A value that cannot work: the field, the value and the remedy. Exit code 2, before anything has started."""


class RunError(RuntimeError):
    """Something on the way that no flag puts right: a damaged checkpoint, numbers that are not finite. Exit code 1."""


def in_a_line(error: BaseException) -> str:
    """What another library raised, short, with the place in this package that called it."""
    ours = [
        f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(Path(__file__).parent)
    ]
    place = f"; at {Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else ""
    return " ".join(str(error).split())[:300] + place


@contextmanager
def refused_in_one_line(run_dir: str) -> Iterator[None]:
    """Turns what a part refuses, and what the disk does, into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(
            f"run_dir={run_dir}: {error}; free some space there, or name one that can be written"
        ) from error
