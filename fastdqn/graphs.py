"""A function over static tensors: captured as a CUDA graph, called plainly on a CPU.

A captured function takes no argument and returns nothing: it reads and writes tensors whose addresses never change, and
its Python runs once. So no branch on data, no host sync, no rebinding of a tensor it uses; numbers that change are 0-d
tensors. Pointers: PyTorch's notes on CUDA graphs, "Constraints". Capturing by hand rather than with tensordict's
`CudaGraphModule`, which synchronises before every replay and freezes non-tensor arguments silently.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # compile, choose algorithms, create workspaces; the allocator settles by the third


class Graph:
    """`function` with its launches recorded once; calling the graph replays them in order on the current stream.

    Warm-up *executes* the function, on the stream and thread of the capture; wrap the building in `preserved` to undo
    what it changed. The capture itself executes nothing. On a CPU nothing is captured and a call is the function's.

    Args:
        capture: False: as on a CPU, the function's kernels are launched one by one.

    Raises:
        RuntimeError: the function synchronises, recompiles or allocates in a way that cannot be captured. There is no
            eager fallback: it would be several times slower without a word.
    """

    def __init__(self, function: Callable[[], object], device: torch.device, *, capture: bool = True) -> None:
        self._function, self._graph = function, None
        if device.type != "cuda" or not capture:
            return
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        # one thread: the backward pass on autograd's own thread would have workspaces and plans of its own
        with torch.cuda.stream(stream), torch.autograd.set_multithreading_enabled(False):
            for _ in range(WARM_UP_CALLS):
                function()
        stream.synchronize()
        graph, collected = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.collect()
        gc.disable()  # a collection in mid-capture could free what belongs to another graph
        try:
            with torch.autograd.set_multithreading_enabled(False), torch.compiler.set_stance("fail_on_recompile"):
                within(torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"), function)
        finally:
            torch.cuda.set_stream(current)  # torch stays on the capture's where that cannot be ended
            if collected:
                gc.enable()
        current.wait_stream(stream)
        self._graph = graph

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self) -> None:
        if self._graph is None:
            self._function()
        else:
            self._graph.replay()


def within(context: AbstractContextManager[object], function: Callable[[], object]) -> None:
    """Calls `function` in `context`. What it raises gets out, and not what leaving the context raises because of it.

    Ending a capture that a call has broken raises an error of its own, which says no more than that.
    """
    cause = None
    try:
        with context:
            try:
                function()
            except Exception as error:
                cause = error
                raise
    except Exception:
        if cause is None:
            raise
        raise cause from None


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Copies `tensors` back in place at the end, also of a body that raises: warm-up leaves no trace in them."""
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)
