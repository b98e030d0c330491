"""A slow, plain model of the replay rules: games are Python lists, nothing is a ring and nothing is an index trick."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Case:
    """One random history: how it is cut into games, and the settings under which it is read back."""

    seed: int
    lanes: int
    lane_length: int
    stack: int
    n_step: int
    rounds: int  # how many groups arrive
    end_rate: float
    life_loss_terminal: bool
    reward_clip: bool
    seam_rate: float = 0.0  # per group: all games begin anew, as after a restart


@dataclass
class Row:
    frame: int
    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    action: int

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated


def random_case(seed: int) -> Case:
    """A case drawn from one integer."""
    draw = np.random.default_rng(seed)
    stack, n_step = int(draw.integers(1, 5)), int(draw.integers(1, 6))
    return Case(
        seed=seed,
        lanes=int(draw.integers(1, 4)),
        lane_length=int(draw.integers(max(6, stack + n_step + 1), 17)),
        stack=stack,
        n_step=n_step,
        rounds=int(draw.integers(1, 50)),
        end_rate=float(draw.choice([0.02, 0.15, 0.4])),
        life_loss_terminal=bool(draw.integers(2)),
        reward_clip=bool(draw.integers(2)),
        seam_rate=float(draw.choice([0.0, 0.1])),
    )


def check(replay, case: Case) -> int:
    """Plays `case` into a ring of the module `replay` and compares everything with the model. Returns starts checked."""
    draw = np.random.default_rng(case.seed)
    ring = replay.ReplayRing(
        capacity=case.lanes * case.lane_length,
        num_envs=case.lanes,
        obs_shape=(1, 1),
        obs_dtype=torch.int32,
        stack=case.stack,
        n_step=case.n_step,
        gamma=0.5,
        reward_clip=case.reward_clip,
        life_loss_terminal=case.life_loss_terminal,
        seed=case.seed,
        device=torch.device("cpu"),
        priority_exponent=0.6 if case.seed % 2 else None,
    )
    history: list[list[Row]] = [[] for _ in range(case.lanes)]
    frame = 0
    for _ in range(case.rounds):
        if draw.random() < case.seam_rate:
            ring.seam()
            for rows in history:
                if rows and not rows[-1].done:
                    rows[-1].truncated = True
        size = int(draw.integers(1, case.lanes + 1))
        group = draw.permutation(case.lanes)[:size]  # lanes fill unevenly and arrive in any order
        rows = []
        for lane in group:
            frame += 1
            after_end = not history[lane] or history[lane][-1].done
            ends = draw.random() < case.end_rate and not after_end
            terminated = bool(ends and draw.random() < 0.5)
            truncated = bool(ends and not terminated)
            lost = bool(not after_end and not terminated and draw.random() < 0.1)
            reward = 0.0 if after_end else float(draw.integers(-3, 4)) / 2
            rows.append(Row(frame, reward, terminated, truncated, lost, int(draw.integers(0, 200))))
        env_id = torch.from_numpy(group.astype(np.int64))
        ring.append(
            env_id,
            torch.tensor([row.frame for row in rows], dtype=torch.int32).view(size, 1, 1),
            torch.tensor([row.reward for row in rows]),
            torch.tensor([row.terminated for row in rows]),
            torch.tensor([row.done for row in rows]),
            torch.tensor([row.life_lost for row in rows]),
        )
        ring.record_action(env_id, torch.tensor([row.action for row in rows]))
        for lane, row in zip(group, rows, strict=True):
            history[lane].append(row)
        newest = [stack_of(history[lane], len(history[lane]) - 1, case.stack) for lane in group]
        assert ring.latest(env_id).flatten(1).tolist() == newest, "the newest observation"
    starts = {(lane, row) for lane in range(case.lanes) for row in starts_of(history[lane], case)}
    slots = {(lane, row % case.lane_length) for lane, row in starts}
    assert {tuple(cell) for cell in ring.starts().nonzero().tolist()} == slots, "the set of starts"
    if ring.priorities is not None:
        weighted = (ring.priorities.weight.view(case.lanes, case.lane_length) > 0).nonzero().tolist()
        assert {tuple(cell) for cell in weighted} == slots, "the rows with a weight"
    if not starts:
        return 0
    order = sorted(starts)
    lane, row = torch.tensor(order).T
    batch = ring.transitions(lane, row, torch.ones(len(order), dtype=torch.bool))
    for i, (start_lane, start) in enumerate(order):
        rows = history[start_lane]
        reward, discount, last = return_of(rows, start, case)
        assert batch.obs[i].flatten().tolist() == stack_of(rows, start, case.stack), "obs"
        assert batch.action[i] == rows[start].action, "action"
        assert batch.reward[i] == reward, "reward"
        assert batch.discount[i] == discount, "discount"
        assert batch.next_obs[i].flatten().tolist() == stack_of(rows, last, case.stack), "next_obs"
    drawn = ring.sample(64)
    cells = {
        divmod(int(index), case.lane_length) for index, weight in zip(drawn.index, drawn.weight, strict=True) if weight
    }
    assert cells <= slots, "a draw outside the starts"
    return len(order)


def starts_of(rows: list[Row], case: Case) -> list[int]:
    """Row numbers that may be sampled: not done, n rows behind them, and a stack that is still there."""
    oldest = max(len(rows) - case.lane_length, 0)
    overwritten = len(rows) > case.lane_length
    return [
        row
        for row in range(oldest, len(rows) - case.n_step)
        if not rows[row].done and (not overwritten or row - (case.stack - 1) >= oldest)
    ]


def game_of(rows: list[Row], row: int) -> list[int]:
    """The row numbers of the game that `row` belongs to, up to `row`."""
    game = [row]
    while game[0] > 0 and not rows[game[0] - 1].done:
        game.insert(0, game[0] - 1)
    return game


def stack_of(rows: list[Row], row: int, stack: int) -> list[int]:
    game = game_of(rows, row)
    padded = [game[0]] * stack + game
    return [rows[number].frame for number in padded[-stack:]]


def return_of(rows: list[Row], start: int, case: Case) -> tuple[float, float, int]:
    """Return, discount and the row to bootstrap from."""
    total, discount, row = 0.0, 1.0, start
    for _ in range(case.n_step):
        row += 1
        reward = max(-1.0, min(1.0, rows[row].reward)) if case.reward_clip else rows[row].reward
        total += discount * reward
        discount *= 0.5
        if rows[row].terminated or (case.life_loss_terminal and rows[row].life_lost):
            return total, 0.0, row
        if rows[row].truncated:
            break
    return total, discount, row
