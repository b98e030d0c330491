"""Safetensors files of tensors too large to copy: written, hashed and read in chunks through one buffer.

    8 bytes: length of the header | header, JSON: name -> dtype, shape, begin and end | the tensors' bytes, one by one

The format is safetensors' own and its library reads the file; only the writing is done here, because the library wants
every tensor in host memory at once. A million frames are 7 GB; this takes 64 MB.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
_NAMES = {torch.uint8: "U8", torch.bool: "BOOL", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16"}


def write(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes `tensors`, contiguous and on any device, and fsyncs. Returns the file's size and sha256."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    digest, size = hashlib.sha256(), 0
    pinned = any(tensor.is_cuda for tensor in tensors.values())  # else it would set up a GPU for a run on the CPU
    buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=pinned)
    with path.open("xb") as file:
        for data in (len(text).to_bytes(8, "little"), text):
            size += file.write(data)
            digest.update(data)
        for tensor in tensors.values():
            for chunk in tensor.reshape(-1).view(torch.uint8).split(CHUNK_BYTES):
                buffer[: len(chunk)].copy_(chunk)
                data = buffer[: len(chunk)].numpy().data
                size += file.write(data)
                digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` in place, on any device, from a file that `write` wrote with the same names, dtypes and shapes.

    Raises:
        ValueError: it is no such file, or a name, dtype or shape differs; nothing has been changed then.
    """
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            for name, tensor in tensors.items():
                found = name in slices and (slices[name].get_dtype(), list(slices[name].get_shape()))
                if found != (_NAMES[tensor.dtype], list(tensor.shape)):
                    raise ValueError(f"{path.name}: {name} is {found}, not {_NAMES[tensor.dtype]} {list(tensor.shape)}")
            for name, tensor in tensors.items():
                rows = max(CHUNK_BYTES // max(tensor[0].nbytes, 1), 1)
                for begin in range(0, len(tensor), rows):
                    tensor[begin : begin + rows].copy_(slices[name][begin : begin + rows])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: cannot be parsed ({error}); restore the checkpoint from a copy") from error
