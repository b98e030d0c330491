"""Everything here needs a CUDA device: `pytest -m gpu tests/gpu`."""

import gc
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No test meets the compiled variants and the memory of another: eight variants of a function are torch's limit."""
    yield
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
