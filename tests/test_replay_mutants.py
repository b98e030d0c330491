"""Would the model notice? Each named mutant breaks one rule of the ring, and the model must catch every one of them."""

import types
from pathlib import Path

import pytest
from replay_oracle import check, random_case

from fastdqn import replay

SOURCE = Path(replay.__file__).read_text()
CASES = [random_case(seed) for seed in range(400)]

MUTANTS = {
    "stacks look past the reset": ("(previous >= 0) & ~done[flat_row", "(previous >= 0) | ~done[flat_row"),
    "stacks look before the first row": ("same_game = (previous >= 0) & ", "same_game = "),
    "stacks skip the padded frames": (".cumprod(1).cumsum(1)", ".cumsum(1)"),
    "stacks are newest first": (".flip(1)", ""),
    "the row of the wrap is off by one": ("lane * lane_length + row % lane_length", "lane * lane_length + (row + 1) % lane_length"),
    "truncation does not bootstrap": ("~(terminal & counts.bool()).any(1)", "~((terminal | done) & counts.bool()).any(1)"),
    "returns run on through a truncation": ("going_on = ~(terminal | done)", "going_on = ~terminal"),
    "returns run on through a termination": ("going_on = ~(terminal | done)", "going_on = ~(done & ~terminal)"),
    "the discount is always gamma to the n": ("gamma ** steps.float()", "gamma ** torch.full_like(steps, reward.shape[1])"),
    "a termination after the window's end counts": ("(terminal & counts.bool()).any(1)", "terminal.any(1)"),
    "rewards are discounted one step too many": ("torch.arange(reward.shape[1],", "torch.arange(1, reward.shape[1] + 1,"),
    "done rows are starts": (" & ~done[lane * lane_length + slot]", ""),
    "the zone behind is one row short": ("behind = age < n_step", "behind = age < n_step - 1"),
    "the zone ahead is one row short": ("(age > lane_length - stack)", "(age > lane_length - stack + 1)"),
    "the zone ahead is one row long": ("(age > lane_length - stack)", "(age > lane_length - stack - 1)"),
    "a ring just full has overwritten rows": ("written > lane_length", "written >= lane_length"),
    "rows not yet written are starts": ("stored = age < written", "stored = age >= 0"),
    "a lost life is ignored": ("if self.life_loss_terminal:", "if False:"),
    "a lost life always ends the return": ("if self.life_loss_terminal:", "if True:"),
    "rewards are never clipped": ("if self.reward_clip else", "if False else"),
    "the action of the row before is read": ("self._action[index].long()", "self._action[index - 1].long()"),
    "the reward of the row itself is read": ("torch.arange(1, self.n_step + 1,", "torch.arange(0, self.n_step,"),
    "the next observation is always n rows on": ("lane, row + steps, self.stack", "lane, row + self.n_step, self.stack"),
    "the newest row keeps its weight": ("priorities.withdraw(", "(lambda *_: None)("),
    "rows whose stacks are gone keep their weight": ("torch.arange(self.stack, device=lane.device)", "torch.arange(1, device=lane.device)"),
    "a lane just full loses its oldest rows": ("overwritten = newest[:, None] >= self.lane_length", "overwritten = newest[:, None] >= self.lane_length - 1"),
    "a row is admitted before its return is there": ("opened = newest - self.n_step", "opened = newest - self.n_step + 1"),
    "done rows are admitted": ("(opened >= 0) & ~self._done[row]", "opened >= 0"),
    "the seam marks nothing": ("self._done[newest] | (self.count > 0)", "self._done[newest]"),
    "the seam unmarks rows that were done": ("self._done[newest] | (self.count > 0)", "self.count < 0"),
    "the seam marks the row to be written next": ("flat_row(lane, self.count - 1, self.lane_length)", "flat_row(lane, self.count, self.lane_length)"),
    "an unlucky slot takes its first candidate": ("(good * rank).argmax(1", "(good * 0 * rank).argmax(1"),
}  # fmt: skip


def load(source: str) -> types.ModuleType:
    module = types.ModuleType("mutant")
    exec(compile(source, "mutant.py", "exec"), module.__dict__)
    return module


def test_the_model_accepts_the_ring_itself() -> None:
    assert sum(check(load(SOURCE), case) for case in CASES) > 2_000


@pytest.mark.parametrize("name", MUTANTS)
def test_the_model_kills_the_mutant(name: str) -> None:
    original, broken = MUTANTS[name]
    assert SOURCE.count(original) == 1, "the mutated text must stand in the source exactly once"
    mutant = load(SOURCE.replace(original, broken))
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        for case in CASES:
            check(mutant, case)
