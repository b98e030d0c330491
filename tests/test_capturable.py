"""What is captured on CUDA, recorded on a CPU: a recording, played again, has to do what calling does.

A CUDA graph repeats launches at fixed addresses and runs no Python. The recording does the same with ATen operations: it
runs each on the tensors it saw and puts what comes out where it came out then. So a number that Python read once, a
branch that it took once, and a tensor that it binds anew are all found without a GPU, and so is what waits for one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quiet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdqn.config import load_preset, preset_names
from fastdqn.distributed import Bucket
from fastdqn.run import Run
from fastdqn.trainer import step_group

# Operations that bring data to the host, whose result's shape hangs on data, or that bring a number from the host: on CUDA
# each one is a host sync. What reads a CPU's memory without an operation, as `tolist` does, shows as a frozen number.
SYNCS = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique2", "_unique2", "repeat_interleave", "lift_fresh"}  # fmt: skip


class Recording(TorchDispatchMode):
    """The operations that run inside, with the tensors they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, tensors_of(result)))
        return result

    @property
    def syncs(self) -> list[str]:
        names = [func.overloadpacket.__name__ for func, *_ in self.operations]
        masks = [
            func
            for func, args, *_ in self.operations
            if "index" in func.overloadpacket.__name__
            and any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tensors_of(args[1]))
        ]
        return [name for name in names if name in SYNCS] + [f"{func} by a mask" for func in masks]

    @torch.no_grad()
    def play(self) -> None:
        for func, args, kwargs, recorded in self.operations:
            for new, old in zip(tensors_of(func(*args, **kwargs)), recorded, strict=True):
                if new.data_ptr() != old.data_ptr():  # neither a view nor in place
                    old.copy_(new)


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def recorded(function: Callable[[], object]) -> Recording:
    with Recording() as recording:
        function()
    return recording


def everything(run: Run) -> list[Tensor]:
    """All that a pipeline's parts change."""
    return [*run.learner.tensors(), *run.ring.stored().values(), run.staging.action]


def after(function: Callable[[], object], run: Run, calls: int = 3) -> list[Tensor]:
    """What `everything` is after so many calls; it is put back."""
    before = [tensor.detach().clone() for tensor in everything(run)]
    for _ in range(calls):
        function()
    found = [tensor.detach().clone() for tensor in everything(run)]
    with torch.no_grad():
        for tensor, old in zip(everything(run), before, strict=True):
            tensor.copy_(old)
    return found


def small(name: str, run_dir: Path) -> Run:
    """The preset with its whole network, on a batch of 4."""
    config = load_preset(name)
    config = quiet(
        name, run_dir, num_envs=4, batch_size=4, replay_ratio=1.0, replay_capacity=2_000,
        learning_starts=4 * (config.frame_stack + config.n_step + 2),
    )  # fmt: skip
    return Run(config, ["test"])


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    run = small(request.param, tmp_path / "run")
    run.envs.start()
    while run.clock.updates < 2:
        step_group(run)
    yield run
    run.envs.close()


@pytest.mark.parametrize("run", preset_names(), indirect=True)
def test_every_part_of_a_preset_does_the_same_recorded_as_called_and_waits_for_nothing(run: Run) -> None:
    pipeline = run.pipeline
    parts = [pipeline._append_and_act_once, pipeline._update_once, run.learner.sync_target]
    recordings = [recorded(part) for part in parts]
    for _ in range(3):  # another group, other counters, another epsilon
        step_group(run)
    run.learner.epsilon.fill_(0.5)
    for part, recording in zip(parts, recordings, strict=True):
        assert recording.syncs == []
        called, played = after(part, run), after(recording.play, run)
        assert any(not torch.equal(old, new) for old, new in zip(everything(run), called, strict=True))
        for one, other in zip(called, played, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("run", ["rainbow", "nature"], indirect=True)
def test_the_two_halves_of_an_update_of_several_ranks_do_the_same_recorded_as_called(run: Run) -> None:
    """They meet in tensors that the first half's capture made: its batch, its TD errors and the flat gradient."""
    pipeline = run.pipeline
    pipeline._bucket = Bucket(run.learner.parameters)
    recordings = [recorded(pipeline._gradients_once), recorded(pipeline._step_once)]
    for _ in range(3):
        step_group(run)
    kept = pipeline._batch, pipeline._td_error_size

    def call() -> None:
        pipeline._gradients_once()
        pipeline._step_once()

    called = after(call, run)
    pipeline._batch, pipeline._td_error_size = kept
    played = after(lambda: [recording.play() for recording in recordings], run)
    assert any(not torch.equal(old, new) for old, new in zip(everything(run), called, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(called, played, strict=True))
    assert [recording.syncs for recording in recordings] == [[], []]


def test_a_recording_keeps_what_python_read_once() -> None:
    total, number, bound = torch.zeros(()), [0], [torch.zeros(())]

    def count() -> None:
        number[0] += 1
        total.add_(number[0])
        bound[0] = bound[0] + 1

    recording = recorded(count)
    first = bound[0]
    recording.play()
    recording.play()
    assert total == 3 and bound[0] is first and first == 1  # called three times: 6 and 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: int(tensor.sum()),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor[tensor.argmax()],
        lambda tensor: bool((tensor > 0).any()),
        lambda tensor: tensor.nonzero(),
        lambda tensor: tensor.unique(),
        lambda tensor: tensor + torch.tensor([1, 2, 3, 4]),
    ],
)
def test_a_recording_names_what_waits_for_the_device(wait: Callable[[Tensor], object]) -> None:
    assert recorded(lambda: wait(torch.arange(4))).syncs
    assert recorded(lambda: torch.arange(4)[torch.arange(2)].sum() + 1).syncs == []
