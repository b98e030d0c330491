"""What happens to a group on the device: append and act, then the updates that are due. Three graphs over static tensors.

    staging.rows --> [ preprocess ] --> ring.append --> stack --> network --> epsilon-greedy --> staging.action   (1)
    ring.sample --> TD target --> backward --> clip --> optimiser --> priorities                                  (2)
    target <- online                                                                                          (3)

All on one stream, so that (2) reads the ring after (1) has written it and (1) reads weights that no update is changing.
With several ranks (2) is two graphs, and between backward and clip the host has the gradients averaged: a collective
inside a graph would wait for a lost rank for ever.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch._dynamo.config
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from fastdqn.distributed import Bucket, Ranks
from fastdqn.errors import in_a_line
from fastdqn.graphs import WARM_UP_CALLS, Graph, preserved
from fastdqn.learner import Learner
from fastdqn.replay import ReplayRing
from fastdqn.staging import Staging

# Variants of one function that torch compiles in a process: as many as it has runs of different settings. By itself torch
# stops at eight. What it limits, compiling over and over while a run learns, `trainer.train` rules out.
VARIANTS = 1 << 30


class Pipeline:
    """The device side of the loop. Calling a part queues it on CUDA and runs it on CPU.

    Building it on CUDA runs every part a few times, and takes back what that changed, also in a ring that was restored.

    Args:
        fire_action: pressed on the step after a lost life; None: never. Without it a policy that does not press FIRE
            stands still to the step cap.
        preprocess: turns staged screens into the ring's, on the device.
        act_threads, learn_threads: torch threads on the CPU, of choosing actions and of an update.
        ranks: with whom gradients are averaged.
        capture: on CUDA, whether the parts are graphs.

    Raises:
        ValueError: what was to be compiled could not be, or what was to be captured.
    """

    def __init__(
        self,
        learner: Learner,
        ring: ReplayRing,
        staging: Staging,
        *,
        batch_size: int,
        fire_action: int | None,
        preprocess: Callable[[Tensor], Tensor],
        act_threads: int,
        learn_threads: int,
        ranks: Ranks,
        capture: bool,
    ) -> None:
        self._learner, self._ring, self._staging = learner, ring, staging
        self._batch_size, self._fire_action, self._preprocess = batch_size, fire_action, preprocess
        self._act_threads, self._learn_threads = act_threads, learn_threads
        self._ranks = ranks
        device = staging.device
        self.queues = device.type == "cuda"  # parts are queued and run while the host goes on
        started = time.perf_counter()
        with torch._dynamo.config.patch(recompile_limit=VARIANTS, accumulated_recompile_limit=VARIANTS):
            self._compile()
        try:
            self._build_graphs(capture=capture)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"cuda_graphs=True: capturing failed; --no-cuda-graphs does without it, slower ({in_a_line(error)})"
            ) from error
        self.compile_seconds = time.perf_counter() - started  # compile, and on CUDA capture

    def _compile(self) -> None:
        """Compiles what is to be compiled, by using it once."""
        learner, ring, env_id = self._learner, self._ring, self._staging.rows["env_id"]
        try:
            if learner.compiled and self.queues:  # on a CPU it brings nothing (benchmarks/LOG.md)
                ring.compile(env_id, self._batch_size)
            learner.warm_up(
                ring.latest(env_id),
                self._batch_size,
                act_threads=self._act_threads,
                learn_threads=self._learn_threads,
            )
        except BackendCompilerFailed as error:
            raise ValueError(
                "compile=True: the compiler failed; fastdqn doctor tests it, --no-compile does without it "
                f"({in_a_line(error)})"
            ) from error

    def _build_graphs(self, *, capture: bool) -> None:
        """Makes the parts into graphs; on CUDA that runs them, and takes back what this changed."""
        learner, ring, staging, device = self._learner, self._ring, self._staging, self._staging.device
        changed = [*learner.tensors(), *ring.bookkeeping().values(), *staging.rows.values()] if self.queues else []
        graph = partial(Graph, device=device, capture=capture)
        with ring.upcoming_kept(WARM_UP_CALLS if self.queues else 0), preserved(changed):
            if self.queues:  # distinct lanes, as of a group
                staging.rows["env_id"].copy_(torch.arange(len(staging.rows["env_id"]), device=device))
            torch.set_num_threads(self._act_threads)  # what was compiled for acting holds for that many
            self._append_and_act = graph(self._append_and_act_once)
            torch.set_num_threads(self._learn_threads)
            if self._ranks.size == 1:
                self._update = graph(self._update_once)
            else:
                self._bucket = Bucket(learner.parameters)
                self._gradients = graph(self._gradients_once)
                if self.queues:
                    self._gradients()  # a capture runs nothing: fills what the next one's warm-up reads
                self._step = graph(self._step_once)
            self.sync_target = graph(learner.sync_target)  # hard update of the target network

    def append_and_act(self, *, epsilon: float, importance_exponent: float, learning_rate: float) -> None:
        """Stores the staged group and chooses its actions, which begin their way to the host.

        Args:
            epsilon: share of random actions from here on, the same for every game.
            importance_exponent: beta of prioritised draws from here on.
            learning_rate: of updates from here on.
        """
        torch.set_num_threads(self._act_threads)
        self._learner.epsilon.fill_(epsilon)
        self._learner.learning_rate.fill_(learning_rate)
        if self._ring.priorities is not None:
            self._ring.priorities.importance_exponent.fill_(importance_exponent)
        self._append_and_act()
        self._staging.queue_actions()

    def update(self) -> None:
        """One optimiser step on a fresh sample."""
        torch.set_num_threads(self._learn_threads)
        if self._ranks.size == 1:
            self._update()
        else:
            self._gradients()
            self._average()
            self._step()

    def _append_and_act_once(self) -> None:
        rows = self._staging.rows
        env_id = rows["env_id"]
        self._ring.append(**{**rows, "obs": self._preprocess(rows["obs"])})
        action = self._learner.act(self._ring.latest(env_id))
        if self._fire_action is not None:
            action = torch.where(rows["life_lost"], self._fire_action, action)
        self._ring.record_action(env_id, action)
        self._staging.action.copy_(action)

    def _update_once(self) -> None:
        batch = self._ring.sample(self._batch_size)
        self._ring.update_priorities(batch, self._learner.update(*batch[:6]))

    def _gradients_once(self) -> None:
        self._batch = self._ring.sample(self._batch_size)
        grads_and_figures, self._td_error_size = self._learner.gradients(*self._batch[:6])
        self._bucket.fill(grads_and_figures)

    def _average(self) -> None:
        """The mean of the ranks' gradients, with importance weights relative to the smallest P of the whole batch."""
        priorities = self._ring.priorities
        if priorities is not None:
            ratio = self._ranks.smallest(priorities.least) / priorities.least
            self._bucket.weigh(ratio**priorities.importance_exponent)
        self._ranks.mean_(self._bucket.flat)

    def _step_once(self) -> None:
        self._ring.update_priorities(self._batch, self._learner.step(self._bucket.views, self._td_error_size))
