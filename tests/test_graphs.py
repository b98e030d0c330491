"""Graphs on a CPU, where a graph is its function; the captured ones are in tests/gpu."""

import pytest
import torch

from fastdqn.graphs import Graph, preserved


def test_a_graph_on_a_cpu_is_its_function_and_building_it_executes_nothing() -> None:
    total = torch.zeros(())
    graph = Graph(lambda: total.add_(1), torch.device("cpu"))
    assert total == 0 and not graph.captured
    graph()
    graph()
    assert total == 2


def test_a_graph_that_is_not_to_be_captured_is_its_function_on_a_gpu_too() -> None:
    total = torch.zeros(())
    graph = Graph(lambda: total.add_(1), torch.device("cuda"), capture=False)
    assert total == 0 and not graph.captured
    graph()
    assert total == 1


def test_preserved_restores_values_in_place() -> None:
    weight, count = torch.randn(3), torch.tensor(4)
    address, before = weight.data_ptr(), weight.clone()
    with preserved([weight, count]):
        weight.mul_(2)
        count.add_(1)
    assert torch.equal(weight, before) and count == 4 and weight.data_ptr() == address


def test_preserved_restores_when_its_body_raises_and_lets_the_error_through() -> None:
    weight = torch.zeros(3)
    with pytest.raises(RuntimeError, match="no capture"), preserved([weight]):
        weight.add_(1)
        raise RuntimeError("no capture")
    assert weight.tolist() == [0, 0, 0]
