"""Graphs on a CPU, where a graph is its function; the captured ones are in tests/gpu."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fastdqn.graphs import Graph, preserved, within


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


def test_of_a_context_that_fails_to_end_what_broke_it_gets_out_and_else_its_own_error() -> None:
    @contextmanager
    def capture(healthy: bool) -> Iterator[None]:
        try:
            yield
        finally:
            if not healthy:
                raise RuntimeError("cannot be ended")

    done = []
    within(capture(True), lambda: done.append(1))
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        within(capture(True), lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError) as error:
        within(capture(False), lambda: 1 // 0)
    assert traceback.extract_tb(error.value.__traceback__)[-1].name == "<lambda>"
    with pytest.raises(RuntimeError, match="cannot be ended"):
        within(capture(False), lambda: None)


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
