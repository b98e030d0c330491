"""Everything here needs a CUDA device: `pytest -m gpu tests/gpu`."""

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
