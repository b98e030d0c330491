"""Checkpoints that survive a kill, a full disk and a flipped bit, and run no code when loaded.

    checkpoints/
      step_000000123456/       one checkpoint, whole or not there at all
        model.safetensors      one file per group of tensors
        optimizer.safetensors
        replay.safetensors     only where asked for: the ring, streamed, see `large_tensors`
        state.json             counters and whatever else is not a tensor
        manifest.json          byte size and sha256 of each file above, sealed by its own sha256
      .tmp_step_000000250000/  a save that was cut off: never read, removed by the next save

A save writes and fsyncs every file of the temporary folder, the manifest last, reads all of it back against the
hashes, fsyncs the folder, renames it, and fsyncs the parent. Only then does anything older go. So at every instant the
newest acknowledged checkpoint is on disk under its name. Neither safetensors nor torch notices a flipped bit in a
payload; the hashes do. A hash is no signature: whoever can write the folder can write a valid checkpoint, but tensors
and JSON are all it can hold.

`to_host` copies the tensors, `write` takes host tensors only and touches no global state, so that a writer thread can
run it while training goes on. One process at a time saves under one root.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastdqn import large_tensors
from fastdqn.errors import RunError

FORMAT = 1
KEEP = 2  # at least: the newest, and one older that it can fall back to

_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", ".safetensors"
_LARGE = "replay.safetensors"
_TEMPORARY = ".tmp_"
_STEP_NAME = re.compile(r"step_(\d{12})")
_FILE_NAME = re.compile(r"state\.json|\w+\.safetensors", re.ASCII)
RESUMED: dict[str, Any] = {  # of a state: what a run goes on from; to play its agent none of them is needed
    **dict.fromkeys(("env_steps", "frames", "updates", "target_syncs", "episodes", "epoch"), int),
    "last_100": list,
    "wall_seconds": int | float,
}
_KINDS = {  # of what a run puts into its state; the readers take these types for granted
    **RESUMED,
    "obs_shape": list,
    "num_actions": int,
    "phase_seconds": dict,
    "score_mean_100": int | float | None,
    "eval_score_mean": int | float,
}
_LARGEST = 1 << 63  # more than any of their numbers comes to
_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has some hundred
# what the parsers raise, see `_refusal`
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError)


class CheckpointError(RunError):
    """A checkpoint that could not be saved, or none that can be trusted; the message is one line with the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns. Tensors are on the CPU, by group and by name; `state` is plain JSON."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    @property
    def large(self) -> Path | None:
        """The file of the large tensors, for `large_tensors.read_into`; None where there is none."""
        path = self.path / _LARGE
        return path if path.exists() else None


def to_host(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Contiguous copies in host memory that share nothing with the originals nor with one another.

    From CUDA each copy waits for the device.
    """
    return {
        group: {
            # contiguous_format: a plain copy of a channels_last weight keeps its strides, which a file has no place for
            name: one.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, one in named.items()
        }
        for group, named in tensors.items()
    }


def write(
    root: Path,
    step: int,
    host: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    large: Mapping[str, Tensor] | None = None,
    *,
    keep: int = KEEP,
) -> Path:
    """Saves one checkpoint, removes what is too old. Returns its folder once it is safely on disk.

    Args:
        root: the folder of all checkpoints of one run; made if missing, but not the run's own: one that was moved away is not
            begun again in its old place.
        step: names the checkpoint and orders it among the others. If this very step is already there and intact,
            nothing is written.
        host: group -> name -> tensor, as `to_host` and `load` give them.
        state: JSON. Tuples come back as lists, keys as strings.
        large: tensors that are written from where they are, in chunks.
        keep: how many stay, the newest ones, two at least; 0: all.

    Raises:
        CheckpointError: it could not be written (disk full, ...). What was there before is untouched.
    """
    path = root / f"step_{step:012d}"
    temporary = root / f"{_TEMPORARY}{path.name}"
    try:
        root.mkdir(exist_ok=True)
        for leftover in root.glob(f"{_TEMPORARY}*"):
            _delete(leftover)
        if _is_intact(path):
            return path
        _write_files(temporary, step, host, state, large)
        _verify(temporary, step)
        _sync_folder(temporary)
        if os.path.lexists(path):  # this step was saved before and is damaged
            _delete(path)
        os.rename(temporary, path)
        _sync_folder(root)
        try:
            _remove_older(root, path, keep)
        except OSError as error:  # the new one is safe
            _warn(f"an older checkpoint was not removed: {error}; the next save will try again")
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"checkpoint of step {step} not saved in {root}: {error}; older ones are intact"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def load(root: Path, step: int | None = None) -> Checkpoint:
    """The newest checkpoint of which every byte is as it was written, or that of `step` alone.

    A damaged one is skipped with a line on stderr that says what is wrong with it; that of `step` is not.

    Raises:
        CheckpointError: there is none, none is intact, or `root` is a symlink.
    """
    if root.is_symlink():  # resuming would write, and remove what is older, wherever it points to
        raise CheckpointError(f"{root}: is a symlink, which is not followed; put the folder itself there")
    paths = checkpoints(root)
    if step is not None:
        if path := next((one for one in paths if step_of(one) == step), None):
            return read(path)
        kept = ", ".join(str(step_of(one)) for one in paths) or "none"
        raise CheckpointError(f"{root}: holds no checkpoint of env step {step}, but of {kept}")
    for path in paths:
        try:
            return read(path)
        except CheckpointError as problem:
            _warn(f"checkpoint {path} refused: {problem}; trying the next older one")
    if paths:
        raise CheckpointError(f"{root}: none of {len(paths)} checkpoints is intact; restore the folder from a copy")
    raise CheckpointError(f"{root}: holds no checkpoint; the run may have ended before its first save")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def checkpoints(root: Path) -> list[Path]:
    """Everything under `root` that has a checkpoint's name, newest first, intact or not.

    Raises:
        CheckpointError: `root` is there and cannot be read: what it holds is not known to be nothing.
    """
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{root}: cannot be read ({error.strerror})") from None
    return [root / name for name in sorted(names, reverse=True) if _STEP_NAME.fullmatch(name)]


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def read(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint folder.

    Raises:
        CheckpointError: anything about it is not as it was written.
    """
    step = step_of(path)
    tensors: dict[str, dict[str, Tensor]] = {}
    state: Any = None
    try:
        for file, data in _verified_files(path, step, keep=True):
            if file == _STATE:
                state = json.loads(data)
            elif file != _LARGE:  # what reads that opens it again
                tensors[file.removesuffix(_TENSORS)] = safetensors.torch.load(data)
        if not isinstance(state, dict):
            raise CheckpointError(f"{_STATE} is missing or not an object")
        for name in _KINDS.keys() & state.keys():
            if not isinstance(state[name], _KINDS[name]) or not _are_numbers(state[name]):
                raise CheckpointError(f"{_STATE} has a {name} that is no run's")
    except _UNREADABLE as error:
        raise _refusal(path, error) from error
    return Checkpoint(path, step, tensors, state)


def _are_numbers(value: Any) -> bool:
    """Whether one of _KINDS is a number, or holds numbers and nothing else."""
    if value is None:
        return True
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(isinstance(one, int | float) and abs(one) < _LARGEST for one in found)  # no NaN is


def _write_files(
    folder: Path,
    step: int,
    host: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    large: Mapping[str, Tensor] | None,
) -> None:
    folder.mkdir()
    files = {}
    for group, named in host.items():
        files[group + _TENSORS] = large_tensors.write(folder / (group + _TENSORS), named)
    if large is not None:
        files[_LARGE] = large_tensors.write(folder / _LARGE, large)
    files[_STATE] = _write_file(folder / _STATE, (json.dumps(state, indent=2) + "\n").encode())
    _write_file(folder / _MANIFEST, _sealed({"format": FORMAT, "step": step, "files": files}))


def _write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Writes to the disk, not just to the page cache. Returns the file's line of the manifest, hashed from memory."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """The manifest with its own hash, in the one spelling that counts as valid: no bit of it can change unseen."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": seal}, sort_keys=True, indent=2) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, Any]:
    with _opened(folder / _MANIFEST) as file:
        data = file.read(_MANIFEST_LIMIT)  # of a longer one a piece, which does not match
    manifest = json.loads(data)
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{_MANIFEST} is not an object")
    manifest.pop("sha256", None)
    if _sealed(manifest) != data:
        raise CheckpointError(f"{_MANIFEST} does not match its own hash")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"format {manifest.get('format')} is not {FORMAT}, the one this version of fastdqn reads")
    return manifest


def _verified_files(folder: Path, step: int, *, keep: bool) -> Iterator[tuple[str, bytes]]:
    """Each file's name, refused unless its bytes are exactly those of the manifest; and with `keep` its bytes.

    The bytes that were hashed are the bytes that are parsed, so nothing can be swapped in between. The large file is
    hashed in chunks, as are all that nobody parses, and comes without bytes.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise CheckpointError("is a symlink or no folder")
    manifest = _read_manifest(folder)
    if manifest["step"] != step:
        raise CheckpointError(f"{_MANIFEST} is of step {manifest['step']}")
    files = manifest["files"]
    for name in files:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{_MANIFEST} names {name!r}, which is no file of a checkpoint")
    present = set(os.listdir(folder)) - {_MANIFEST}
    if foreign := present - files.keys():
        raise CheckpointError(f"{min(foreign)!r} is not in {_MANIFEST}")
    if missing := files.keys() - present:
        raise CheckpointError(f"{min(missing)} is missing")
    for name, expected in files.items():
        with _opened(folder / name) as file:
            if (size := os.fstat(file.fileno()).st_size) != expected["bytes"]:
                raise CheckpointError(f"{name} has {size} bytes instead of {expected['bytes']}")
            data = file.read() if keep and name != _LARGE else b""
            digest = hashlib.sha256(data) if data else hashlib.file_digest(file, "sha256")
        if digest.hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{name} does not match its hash")
        yield name, data


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """A regular file. A symlink is not followed, a pipe not waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path.name} is no regular file")
        yield file


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """What to raise for whatever a damaged or hostile folder makes the parsers raise.

    No context manager made of a generator: from Python 3.12 on, the error it catches and itself are a cycle, which holds
    every caller's frame and with it a save's copies until the garbage collector runs. In training it is off.
    """
    if isinstance(error, OSError):
        name = Path(error.filename).name if error.filename else path.name
        return CheckpointError(f"{name} cannot be read ({error.strerror}; symlinks are not followed)")
    return CheckpointError(f"cannot be parsed ({type(error).__name__}: {error})".replace("\n", " "))


def _verify(folder: Path, step: int) -> None:
    try:
        for _ in _verified_files(folder, step, keep=False):
            pass
    except _UNREADABLE as error:
        raise _refusal(folder, error) from error


def _is_intact(path: Path) -> bool:
    try:
        _verify(path, step_of(path))
    except CheckpointError:
        return False
    return True


def _remove_older(root: Path, newest: Path, keep: int) -> None:
    """Keeps `newest` and the newest other one that still verifies, so that there is always one to fall back to; and
    of those before it, unread, as many as make `keep`, all with 0.

    That of step 0 stands until there is another: to fall back to it would be to begin again, which nobody has asked for.
    """
    kept = 1
    for path in checkpoints(root):
        if path == newest:
            continue
        if step_of(path) > 0 and (keep == 0 or (kept < keep and (kept >= KEEP or _is_intact(path)))):
            kept += 1
        else:
            _delete(path)


def _delete(path: Path) -> None:
    """Follows no symlink. A kill halfway leaves a checkpoint with missing files: never intact, gone at the next save."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file does not cover its entry."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
