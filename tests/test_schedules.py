"""The clock of learning against a scalar simulation that takes one env step at a time."""

from bisect import bisect_right
from fractions import Fraction

import pytest

from fastdqn.schedules import LearningSchedule, SaveSchedule, line

STARTS, END = 1_000, 3_500


def scalar_simulation(schedule: LearningSchedule, batch_size: int, replay_ratio: str) -> list[tuple[int, str]]:
    """(env step, event) with one env: a credit counter that earns `replay_ratio` transitions a step."""
    events, credit, since_sync = [], Fraction(0), 0
    for env_step in range(1, END + 1):
        if env_step <= schedule.learning_starts:
            continue
        credit += Fraction(replay_ratio)
        while credit >= batch_size:
            credit -= batch_size
            events.append((env_step, "update"))
        since_sync += 1
        if since_sync == schedule.target_update_period:
            since_sync = 0
            events.append((env_step, "sync"))
    return events


@pytest.mark.parametrize(
    ("batch_size", "replay_ratio", "period"),
    [(32, "8", 1_000), (256, "8", 997), (64, "4", 16), (32, "0.1", 500), (3, "7", 1), (7, "2.3", 250), (1, "1", 1)],
)
def test_every_num_envs_runs_the_scalar_simulations_events_in_its_order(
    batch_size: int, replay_ratio: str, period: int
) -> None:
    schedule = LearningSchedule(
        learning_starts=STARTS, batch_size=batch_size, replay_ratio=float(replay_ratio), target_update_period=period
    )
    expected = scalar_simulation(schedule, batch_size, replay_ratio)
    due_steps = [step for step, _ in expected]
    for num_envs in range(1, 258):
        group_ends = [*range(num_envs, END, num_envs), END]
        events, before = [], 0
        for after in group_ends:
            events.extend(schedule.events(before, after))
            owed = bisect_right(due_steps, after)
            assert len(events) == owed, f"num_envs={num_envs}: an event ran before or after the group that owes it"
            before = after
        assert events == [event for _, event in expected]


def test_update_comes_before_sync_on_a_tie() -> None:
    schedule = LearningSchedule(learning_starts=0, batch_size=4, replay_ratio=1.0, target_update_period=4)
    assert list(schedule.events(0, 8)) == ["update", "sync", "update", "sync"]


def test_nothing_is_due_before_learning_starts() -> None:
    schedule = LearningSchedule(learning_starts=100, batch_size=1, replay_ratio=1.0, target_update_period=1)
    assert list(schedule.events(0, 100)) == []
    assert list(schedule.events(100, 101)) == ["update", "sync"]


def test_a_decimal_replay_ratio_is_exact_over_ten_million_steps() -> None:
    schedule = LearningSchedule(learning_starts=0, batch_size=1, replay_ratio=0.1, target_update_period=10)
    assert schedule.updates(10_000_000) == 1_000_000
    schedule = LearningSchedule(learning_starts=0, batch_size=1, replay_ratio=0.7, target_update_period=10)
    assert (
        schedule.updates(10_000_000) == 7_000_000
    )  # binary fractions: 0.1 is nearest to a larger one, 0.7 to a smaller


def test_target_cadence_is_the_period_and_not_the_nearest_multiple_of_the_group() -> None:
    schedule = LearningSchedule(learning_starts=0, batch_size=32, replay_ratio=0.0, target_update_period=1_000)
    syncs = sum(1 for before in range(0, 960_000, 64) for _ in schedule.events(before, before + 64))
    assert syncs == 960  # counting in groups of 64 would give 1,000


def test_a_line_begins_and_ends_where_it_says_and_one_of_no_length_is_a_step() -> None:
    assert [line(step, 10, 30, 1.0, 0.5) for step in (0, 10, 20, 30, 31)] == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert [line(step, 10, 10, 1.0, 0.5) for step in (9, 10, 11)] == [1.0, 1.0, 0.5]


def test_a_checkpoint_is_due_by_frames_for_an_evaluation_and_by_time_each_counted_from_the_last() -> None:
    saves = SaveSchedule(checkpoint_period=1_000, eval_period=300, seconds=600.0, frames=2_500, now=50.0)
    assert not saves.due(2_699, 650.0) and saves.due(2_699, 650.1)
    assert saves.due(2_700, 50.0) and saves.eval_due(2_700)
    saves.saved(2_700, 700.0)
    assert not saves.due(2_999, 1_300.0) and not saves.eval_due(2_999)
    assert saves.due(3_000, 700.0) and saves.due(2_999, 1_300.1) and saves.due(6_000, 700.0)


def test_without_evaluations_none_is_due_and_without_a_limit_no_time_is_too_long() -> None:
    saves = SaveSchedule(checkpoint_period=1_000, eval_period=0, seconds=float("inf"), frames=0, now=0.0)
    assert not saves.due(999, 1e9) and saves.due(1_000, 0.0) and not saves.eval_due(1_000)
