"""The replay ring: every frame once, one lane per env, stacks and n-step returns put together when sampled.

One lane, lane_length = 12, stack = 4, n_step = 3. Row numbers count from the lane's beginning; row i lies at i % 12:

    row      16  17  18 | 19  20  21  22  23  24 | 25  26  27 | 16 ...
    frame     F   F   F |  F   F   T   R   F   F |  F   F   F |
    done      .   .   . |  .   .   x   .   .   . |  .   .   . |
                                                            ^ newest row; the next one overwrites row 16
             `- AHEAD --'                          `- BEHIND -'

    AHEAD   the stack - 1 oldest rows: the rows their stacks would need are overwritten already
    BEHIND  the n_step newest rows: the rows their returns would need are not there yet
    T       terminal or truncated frame: `done`; its action was ignored, it is never sampled
    R       reset frame of the next game; stacks do not look past it

A row is a *start* (may be sampled) iff it is stored, not `done`, and in neither zone, whatever the zones contain.
Reward and flags of row i + 1 describe the step into row i + 1; the action of row i is the one chosen at row i.

    stack(i)     frames i - 3 .. i, never going back past the row after the nearest `done`: that frame is repeated
    return(i)    sum of gamma^k r[i + 1 + k], stopping after n_step rewards,
                 or after the first terminal row: no bootstrap (discount 0),
                 or after the first truncated row: its frame is the true one, bootstrap from it with gamma^m

Every operation has static shapes and no host sync, and every index is one flat int64 tensor, so that all of it can be
captured in a CUDA graph. Which rows, and what return: pure arithmetic on a hundred small tensors, which `compile` fuses;
storing rows and reading frames is left to PyTorch's own kernels. Legend: E lanes (envs), L rows a lane, B rows appended,
N samples, S stack, K candidates.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor

from fastdqn import rng
from fastdqn.priorities import Priorities

CANDIDATES = 16  # draws per sample; all of them miss with probability p^16, where p is the share of rows not starts


class Rows(NamedTuple):
    """Where N transitions lie, and all of them but the frames."""

    obs: Tensor  # int64 [N * S], flat rows
    next_obs: Tensor  # int64 [N * S]
    action: Tensor  # int64 [N]
    reward: Tensor  # float32 [N]
    discount: Tensor  # float32 [N]
    index: Tensor  # int64 [N]


class Batch(NamedTuple):
    """N transitions. `index` is the flat row of each start.

    `weight` is 0 where no start was found, else 1 or the importance weight of a prioritised draw.
    """

    obs: Tensor  # uint8 [N, S, H, W] or float32 [N, D]
    action: Tensor  # int64 [N]
    reward: Tensor  # float32 [N], n-step return
    discount: Tensor  # float32 [N], gamma^m, 0 after a termination
    next_obs: Tensor  # as obs
    weight: Tensor  # float32 [N]
    index: Tensor  # int64 [N]


def flat_row(lane: Tensor, row: Tensor, lane_length: int) -> Tensor:
    """Where row number `row` of `lane` is stored. int64, any shape"""
    return lane * lane_length + row % lane_length


def stack_rows(done: Tensor, lane: Tensor, row: Tensor, stack: int, lane_length: int) -> Tensor:
    """Flat rows of the stack at `row`, oldest first. int64 [N, S]"""
    previous = row[:, None] - torch.arange(1, stack, device=row.device)
    same_game = (previous >= 0) & ~done[flat_row(lane[:, None], previous, lane_length)]
    back = same_game.long().cumprod(1).cumsum(1)  # 1, 2, 2, ...: stays where the game began
    back = torch.cat([torch.zeros_like(row)[:, None], back], 1)
    return flat_row(lane[:, None], row[:, None] - back, lane_length).flip(1)


def n_step_return(reward: Tensor, terminal: Tensor, done: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return, discount and steps m over the n rows after each start. [N, n] -> float32, float32, int64 [N]"""
    going_on = ~(terminal | done)
    counts = torch.cat([torch.ones_like(going_on[:, :1]), going_on[:, :-1]], 1).long().cumprod(1)
    powers = gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=torch.float32)
    steps = counts.sum(1)
    bootstraps = ~(terminal & counts.bool()).any(1)
    return (counts * powers * reward).sum(1), gamma ** steps.float() * bootstraps, steps


def is_start(
    done: Tensor, count: Tensor, lane: Tensor, slot: Tensor, *, stack: int, n_step: int, lane_length: int
) -> Tensor:
    """Whether what is stored at `slot` of `lane` may be sampled. bool, any shape"""
    written = count[lane]
    age = (written - 1 - slot) % lane_length  # 0 is the newest row
    stored = age < written
    behind = age < n_step
    ahead = (written > lane_length) & (age > lane_length - stack)
    return stored & ~behind & ~ahead & ~done[lane * lane_length + slot]


class ReplayRing:
    """A preallocated ring of `capacity // num_envs` rows per env.

    Args:
        capacity: rows (frames) in all lanes together.
        obs_shape, obs_dtype: one frame, uint8 (H, W), or one vector, float32 (D,) with stack 1.
        stack: frames in an observation.
        n_step, gamma: of the return.
        reward_clip: clamp rewards to [-1, 1] when sampled; the ring keeps them raw.
        life_loss_terminal: treat a lost life as a termination of the return (the game goes on).
        priority_exponent: alpha of prioritised draws, see `priorities`; None draws uniformly.
        seed: of the sampling stream.
    """

    def __init__(
        self,
        *,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: torch.dtype,
        stack: int,
        n_step: int,
        gamma: float,
        reward_clip: bool,
        life_loss_terminal: bool,
        seed: int,
        device: torch.device,
        priority_exponent: float | None = None,
    ) -> None:
        self.num_envs, self.lane_length = num_envs, capacity // num_envs
        self.stack, self.n_step, self.gamma = stack, n_step, gamma
        self.reward_clip, self.life_loss_terminal = reward_clip, life_loss_terminal
        if self.lane_length < stack + n_step + 1:
            raise ValueError(
                f"replay_capacity={capacity}: {self.lane_length} rows for each of {num_envs} envs hold no start; "
                f"at least {num_envs * (stack + n_step + 1)} are needed"
            )
        if len(obs_shape) == 1 and stack != 1:
            raise ValueError(f"frame_stack={stack}: vector observations are not stacked; use 1")
        shape = (num_envs, self.lane_length)
        # fill_ touches every page, so that running out of memory can only happen here
        self.storage = TensorDict(
            {
                "frame": torch.empty(*shape, *obs_shape, dtype=obs_dtype, device=device).fill_(0),
                "action": torch.empty(shape, dtype=torch.uint8, device=device).fill_(0),
                "reward": torch.empty(shape, device=device).fill_(0),
                "terminated": torch.empty(shape, dtype=torch.bool, device=device).fill_(False),
                "life_lost": torch.empty(shape, dtype=torch.bool, device=device).fill_(False),
                "done": torch.empty(shape, dtype=torch.bool, device=device).fill_(False),
            },
            batch_size=shape,
        )
        self.count = torch.zeros(num_envs, dtype=torch.int64, device=device)  # rows ever written
        self.draw_counter = torch.zeros((), dtype=torch.int64, device=device)
        self.failed_slots = torch.zeros((), dtype=torch.int64, device=device)
        self._key = rng.role_key(seed, "replay")
        self.priorities = None
        if priority_exponent is not None:
            rows = num_envs * self.lane_length
            self.priorities = Priorities(rows, exponent=priority_exponent, seed=seed, device=device)
        self._frame = self.storage["frame"].view(num_envs * self.lane_length, math.prod(obs_shape))
        self._action, self._reward, self._terminated, self._life_lost, self._done = (
            self.storage[name].view(-1) for name in ("action", "reward", "terminated", "life_lost", "done")
        )
        self._obs_shape = (stack, *obs_shape) if len(obs_shape) > 1 else obs_shape

    def compile(self, env_id: Tensor, batch_size: int) -> None:
        """Fuses the arithmetic behind `latest` of lanes `env_id` and `sample`. Changes nothing that is stored."""
        for name in ("_draw", "_rows_at", "_newest_rows"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, dynamic=False))
        if self.priorities is None:
            self._draw(batch_size)
        else:
            self._rows_at(torch.zeros(batch_size, dtype=torch.int64, device=env_id.device))
        self._newest_rows(env_id)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is preallocated."""
        priorities = 0 if self.priorities is None else self.priorities.nbytes
        return priorities + self.count.nbytes + sum(self.storage[name].nbytes for name in self.storage.keys())  # noqa: SIM118

    def bookkeeping(self) -> dict[str, Tensor]:
        """What appending and sampling change beside the stored rows, by name."""
        own = {"count": self.count, "draw_counter": self.draw_counter, "failed_slots": self.failed_slots}
        if self.priorities is None:
            return own
        return own | {
            "priority": self.priorities.weight,
            "priority_largest": self.priorities.largest,
            "priority_draw_counter": self.priorities.draw_counter,
        }

    @contextmanager
    def upcoming_kept(self, rows: int) -> Iterator[None]:
        """Puts back at its end what the next `rows` appends to any lane overwrite: of a full ring its oldest rows."""
        lane = torch.arange(self.num_envs, device=self.count.device)[:, None]
        number = self.count[:, None] + torch.arange(rows, device=self.count.device)
        index = flat_row(lane, number, self.lane_length).view(-1)
        fields = self._frame, self._action, self._reward, self._terminated, self._life_lost, self._done
        saved = [field[index] for field in fields]
        try:
            yield
        finally:
            for field, old in zip(fields, saved, strict=True):
                field.index_copy_(0, index, old)

    def stored(self) -> dict[str, Tensor]:
        """All that a ring is, by name, for a checkpoint: the rows, what is counted, and the priorities."""
        rows = {str(name): self.storage[name] for name in self.storage.keys()}  # noqa: SIM118
        return rows | {name: value.view(-1) for name, value in self.bookkeeping().items()}

    def seam(self) -> None:
        """The games begin anew here: in every lane a reset frame will follow a row in mid-game whose action never ran.

        That row becomes `done`, not terminated: no start, stacks stop at it, and returns bootstrap from it.
        """
        lane = torch.arange(self.num_envs, device=self.count.device)
        newest = flat_row(lane, self.count - 1, self.lane_length)
        self._done.index_copy_(0, newest, self._done[newest] | (self.count > 0))

    def append(
        self, env_id: Tensor, obs: Tensor, reward: Tensor, terminated: Tensor, done: Tensor, life_lost: Tensor
    ) -> None:
        """Writes one new row in each of B distinct lanes. env_id int64 [B], obs [B, *obs_shape], the rest [B]."""
        written = self.count[env_id]
        row = flat_row(env_id, written, self.lane_length)
        self._frame.index_copy_(0, row, obs.reshape(obs.shape[0], -1))
        self._reward.index_copy_(0, row, reward)
        self._terminated.index_copy_(0, row, terminated)
        self._done.index_copy_(0, row, done)
        self._life_lost.index_copy_(0, row, life_lost)
        self.count.index_copy_(0, env_id, written + 1)
        if self.priorities is not None:
            self._follow_zones(self.priorities, env_id, written)

    def record_action(self, env_id: Tensor, action: Tensor) -> None:
        """Stores the action chosen at the newest row of each lane. int64 [B], [B]"""
        row = flat_row(env_id, self.count[env_id] - 1, self.lane_length)
        self._action.index_copy_(0, row, action.to(torch.uint8))

    def latest(self, env_id: Tensor) -> Tensor:
        """The observation at the newest row of each lane: uint8 [B, S, H, W] or float32 [B, D]."""
        return self._frames(self._newest_rows(env_id))

    def sample(self, batch_size: int) -> Batch:
        """A draw over exactly the starts, with replacement. Advances the ring's random stream."""
        if self.priorities is None:
            rows, weight, missed = self._draw(batch_size)
            self.draw_counter += 1
            self.failed_slots += missed
        else:
            index, weight = self.priorities.draw(batch_size)
            rows = self._rows_at(index)
        return self._batch(rows, weight)

    def update_priorities(self, batch: Batch, td_error: Tensor) -> None:
        """Tells a prioritised ring what was learned from `batch`: |delta| or its like, [N]. Else does nothing."""
        if self.priorities is not None:
            self.priorities.update(batch.index, td_error, batch.weight > 0)

    def transitions(self, lane: Tensor, row: Tensor, weight: Tensor) -> Batch:
        """The transitions that begin at row number `row` of `lane`, with their weights. [N] each"""
        return self._batch(self._rows(lane, row), weight)

    def starts(self) -> Tensor:
        """Exactly the rows that may be sampled, by storage slot. bool [E, L]"""
        lane = torch.arange(self.num_envs, device=self.count.device)[:, None]
        slot = torch.arange(self.lane_length, device=self.count.device)[None, :]
        return is_start(self._done, self.count, lane, slot, **self._zones)

    @property
    def _zones(self) -> dict[str, int]:
        return {"stack": self.stack, "n_step": self.n_step, "lane_length": self.lane_length}

    def _batch(self, rows: Rows, weight: Tensor) -> Batch:
        return Batch(
            obs=self._frames(rows.obs),
            action=rows.action,
            reward=rows.reward,
            discount=rows.discount,
            next_obs=self._frames(rows.next_obs),
            weight=weight.float(),
            index=rows.index,
        )

    def _rows(self, lane: Tensor, row: Tensor) -> Rows:
        """Row number `row` of `lane`, its stack, and the n steps after it. Pure."""
        window = flat_row(
            lane[:, None], row[:, None] + torch.arange(1, self.n_step + 1, device=row.device), self.lane_length
        )
        reward, discount, steps = self._return(window)
        index = flat_row(lane, row, self.lane_length)
        return Rows(
            obs=stack_rows(self._done, lane, row, self.stack, self.lane_length).view(-1),
            next_obs=stack_rows(self._done, lane, row + steps, self.stack, self.lane_length).view(-1),
            action=self._action[index].long(),
            reward=reward,
            discount=discount,
            index=index,
        )

    def _rows_at(self, index: Tensor) -> Rows:
        """The same of flat rows, int64 [N]."""
        lane = index // self.lane_length
        return self._rows(lane, self._row_number(lane, index % self.lane_length))

    def _newest_rows(self, env_id: Tensor) -> Tensor:
        """Flat rows of the stack at the newest row of each lane. Pure. int64 [B * S]"""
        return stack_rows(self._done, env_id, self.count[env_id] - 1, self.stack, self.lane_length).view(-1)

    def _draw(self, batch_size: int) -> tuple[Rows, Tensor, Tensor]:
        """N rows drawn, whether each is a start [N], and how many are not (0-d). Pure: the caller moves the stream on.

        K candidates per sample over the written rows, the first that is a start wins: uniform over the starts without
        a loop of unknown length. Moving a bad draw to its neighbour instead would favour the neighbours.
        """
        fullest = self.count.max().clamp(1, self.lane_length)  # rows written in the fullest lane
        position = torch.arange(batch_size * CANDIDATES, device=self.count.device).view(batch_size, CANDIDATES)
        cell = rng.below(rng.bits(self._key, self.draw_counter, position), fullest * self.num_envs)
        lane, slot = cell // fullest, cell % fullest
        good = is_start(self._done, self.count, lane, slot, **self._zones)
        rank = torch.arange(CANDIDATES, 0, -1, device=good.device)
        first = (good * rank).argmax(1, keepdim=True)
        lane, slot = lane.gather(1, first).squeeze(1), slot.gather(1, first).squeeze(1)
        found = good.any(1)
        return self._rows(lane, self._row_number(lane, slot)), found, batch_size - found.sum()

    def _row_number(self, lane: Tensor, slot: Tensor) -> Tensor:
        """The number of the row that is stored at `slot` of `lane`."""
        newest = self.count[lane] - 1
        return newest - (newest - slot) % self.lane_length

    def _follow_zones(self, priorities: Priorities, lane: Tensor, newest: Tensor) -> None:
        """Keeps weight 0 exactly on what is no start, as row number `newest` of each lane has just been written.

        It lies BEHIND, as n_step - 1 rows before it still do, and the oldest rows fall into AHEAD; the row before those
        comes out of BEHIND.
        """
        number = newest[:, None] + torch.arange(self.stack, device=lane.device)  # its own slot and the next
        overwritten = newest[:, None] >= self.lane_length  # else those slots are not written, and never had a weight
        priorities.withdraw(flat_row(lane[:, None], number, self.lane_length), overwritten)
        opened = newest - self.n_step
        row = flat_row(lane, opened, self.lane_length)
        priorities.admit(row, (opened >= 0) & ~self._done[row])

    def _return(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reward = self._reward[window].clamp(-1, 1) if self.reward_clip else self._reward[window]
        terminal = self._terminated[window]
        if self.life_loss_terminal:
            terminal = terminal | self._life_lost[window]
        return n_step_return(reward, terminal, self._done[window], self.gamma)

    def _frames(self, rows: Tensor) -> Tensor:
        """The observations whose frames lie at flat rows, int64 [N * S]."""
        # one flat index and index_select: on CPU 15 times faster than advanced indexing, on CUDA 16-byte vector loads
        return self._frame.index_select(0, rows).view(rows.shape[0] // self.stack, *self._obs_shape)
