"""When things are due, as exact functions of env steps.

Nothing here counts groups or calls `step % period == 0`: a group of B envs moves the clock by up to B env steps at
once, and a period that B does not divide would fire late or never. Instead each event has an exact due step, in rational
arithmetic, and a group runs the events whose step it crossed, in order. So `num_envs` changes speed, not the algorithm.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Literal

Event = Literal["update", "sync"]


@dataclass
class Clock:
    """The counters of a run; everything scheduled is a function of `env_steps`."""

    env_steps: int = 0
    updates: int = 0
    target_syncs: int = 0


def line(env_step: int, start: int, end: int, first: float, last: float) -> float:
    """`first` until env step `start`, `last` from `end` on, a straight line between."""
    progress = (env_step - start) / max(end - start, 1)
    return first + min(max(progress, 0.0), 1.0) * (last - first)


class LearningSchedule:
    """Updates and target syncs, counted from the learning start.

    The k-th update (k = 1, 2, ...) is due at env step learning_starts + ceil(k * batch_size / replay_ratio): from the
    learning start on, `replay_ratio` transitions are sampled per transition generated. The k-th target sync is due at
    env step learning_starts + k * target_update_period, or never with None. On a tie the update comes first.
    """

    def __init__(
        self, *, learning_starts: int, batch_size: int, replay_ratio: float, target_update_period: int | None
    ) -> None:
        self.learning_starts = learning_starts
        self.target_update_period = target_update_period or 0  # 0: no sync is ever due
        # Fraction(str(x)) is the decimal the user typed: 0.1 is 1/10, not its nearest binary fraction
        self.updates_per_step = Fraction(str(replay_ratio)) / batch_size

    def updates(self, env_steps: int) -> int:
        """Updates due up to and including this env step."""
        return floor(max(env_steps - self.learning_starts, 0) * self.updates_per_step)

    def syncs(self, env_steps: int) -> int:
        """Target syncs due up to and including this env step."""
        if self.target_update_period == 0:
            return 0
        return max(env_steps - self.learning_starts, 0) // self.target_update_period

    def events(self, before: int, after: int) -> Iterator[Event]:
        """The events due in env steps before < step <= after, in env-step order, update before sync on a tie."""
        update, last_update = self.updates(before), self.updates(after)
        for sync in range(self.syncs(before) + 1, self.syncs(after) + 1):
            until = self.updates(self.learning_starts + sync * self.target_update_period)
            while update < until:
                update += 1
                yield "update"
            yield "sync"
        while update < last_update:
            update += 1
            yield "update"


class SaveSchedule:
    """When a checkpoint is due: by frames, for an evaluation, which plays what was saved, or by time, for a slow run would
    lose hours.

    Args:
        checkpoint_period, eval_period: in frames; no evaluation with 0.
        seconds: the longest time without a checkpoint.
        frames, now: where the run is, and a clock's seconds, here as below.
    """

    def __init__(self, *, checkpoint_period: int, eval_period: int, seconds: float, frames: int, now: float) -> None:
        self._checkpoint_period, self._eval_period, self._seconds = checkpoint_period, eval_period, seconds
        self.saved(frames, now)

    def due(self, frames: int, now: float) -> bool:
        """Whether a checkpoint is."""
        return self._periods(frames) != self._saved or now - self._saved_at > self._seconds

    def saved(self, frames: int, now: float) -> None:
        """A checkpoint is made here."""
        self._saved, self._saved_at = self._periods(frames), now

    def eval_due(self, frames: int) -> bool:
        """Whether an evaluation of the next checkpoint is."""
        return self._periods(frames)[1] > self._saved[1]

    def _periods(self, frames: int) -> tuple[int, int]:
        """Periods that have passed, of checkpoints and of evaluations."""
        return frames // self._checkpoint_period, frames // self._eval_period if self._eval_period > 0 else 0
