"""Streaming: the library reads what is written, chunk by chunk, and nothing but the expected is read back."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastdqn import large_tensors

TENSORS = {
    "frame": torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 5, 7),
    "reward": torch.randn(3, 5),
    "done": torch.rand(3, 5) < 0.5,
    "count": torch.tensor([1, 2, 3]),
    "counter": torch.tensor([9]),
}


@pytest.mark.parametrize("chunk", [8, 24, 1 << 20])
def test_the_library_reads_what_was_streamed(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_tensors, "CHUNK_BYTES", chunk)
    line = large_tensors.write(tmp_path / "x.safetensors", TENSORS)
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == TENSORS.keys() and all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert line == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert int.from_bytes(data[:8], "little") % 8 == 0  # the tensors begin aligned
    into = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    large_tensors.read_into(tmp_path / "x.safetensors", into)
    assert all(torch.equal(into[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.uint8)])
def test_another_shape_or_dtype_is_refused_before_anything_is_changed(wrong: torch.Tensor, tmp_path: Path) -> None:
    large_tensors.write(tmp_path / "x.safetensors", TENSORS)
    into = {"frame": torch.zeros_like(TENSORS["frame"]), "reward": wrong}
    with pytest.raises(ValueError, match="reward is"):
        large_tensors.read_into(tmp_path / "x.safetensors", into)
    assert not into["frame"].any()
    with pytest.raises(ValueError, match="missing is False"):
        large_tensors.read_into(tmp_path / "x.safetensors", {"missing": torch.zeros(1)})
