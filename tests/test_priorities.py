"""Prioritised draws against a float64 model: sums, draws, weights, duplicates, and the law of a million draws."""

import numpy as np
import pytest
import torch
from test_replay import random_ring

from fastdqn import rng
from fastdqn.priorities import EPSILON, LARGEST, ONE, Priorities

CPU = torch.device("cpu")


def make(rows: int, exponent: float = 0.5) -> Priorities:
    return Priorities(rows, exponent=exponent, seed=3, device=CPU)


def random_errors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) * 4


def everything(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.bool)


@pytest.mark.parametrize("exponent", [0.0, 0.2, 0.5, 1.0])
def test_weights_are_the_errors_to_the_exponent_applied_once(exponent: float) -> None:
    priorities, errors = make(500, exponent), random_errors(500)
    priorities.update(torch.arange(500), errors, everything(500))
    expected = (errors.double() + EPSILON) ** exponent
    assert torch.allclose(priorities.weight.double() / ONE, expected, atol=1 / ONE)


def test_weights_stay_between_one_and_their_largest() -> None:
    priorities = make(3, exponent=1.0)
    priorities.update(torch.arange(3), torch.tensor([0.0, 1e30, 1.0]), everything(3))
    assert priorities.weight.tolist() == [1, LARGEST, ONE + 1]


def test_draws_are_those_of_a_search_in_the_exact_running_sum() -> None:
    priorities = make(1_000)
    priorities.update(torch.arange(1_000), random_errors(1_000), torch.arange(1_000) % 3 > 0)
    row, _ = priorities.draw(4_096)
    sums = np.cumsum(priorities.weight.numpy().astype(object))  # Python integers: no rounding, no overflow
    words = rng.bits(rng.role_key(3, "prioritized replay"), torch.tensor(0), torch.arange(4_096))
    points = [((int(word) & (2**64 - 1)) >> 1) % int(sums[-1]) for word in words]
    assert row.tolist() == [int(np.searchsorted(sums, point, side="right")) for point in points]


def test_importance_weights_are_schauls_formula_in_float64() -> None:
    priorities = make(200)
    priorities.update(torch.arange(200), random_errors(200), everything(200))
    priorities.importance_exponent.fill_(0.7)
    row, importance = priorities.draw(64)
    probability = priorities.weight.double() / priorities.weight.sum()
    expected = (200 * probability[row]) ** -0.7
    assert torch.allclose(importance.double(), expected / expected.max(), rtol=1e-6)
    assert importance.max() == 1.0
    assert priorities.least.item() == pytest.approx(probability[row].min().item())


def test_of_duplicates_in_a_batch_the_largest_counts_in_any_order_and_weights_can_fall() -> None:
    row, errors = torch.tensor([4, 1, 4, 1, 4]), torch.tensor([0.25, 9.0, 4.0, 1.0, 1.0])
    results = []
    for order in (torch.arange(5), torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2, 0, 4, 1, 3])):
        priorities = make(6)
        priorities.update(torch.arange(6), torch.full((6,), 100.0), everything(6))
        priorities.update(row[order], errors[order], everything(5))
        results.append(priorities.weight.tolist())
    assert results[0] == results[1] == results[2]
    assert results[0][4] == pytest.approx(2 * ONE, rel=1e-5) and results[0][1] == pytest.approx(3 * ONE, rel=1e-5)
    assert results[0][0] == pytest.approx(10 * ONE, rel=1e-5)


def test_a_slot_that_drew_nothing_writes_nothing() -> None:
    priorities = make(4)
    row, importance = priorities.draw(8)  # all weights are 0
    assert importance.tolist() == [0.0] * 8 and priorities.least == float("inf")  # no least chance among several ranks'
    priorities.update(row, torch.ones(8), importance > 0)
    assert priorities.weight.tolist() == [0] * 4


def test_new_rows_get_the_largest_weight_ever_written_and_at_first_that_of_an_error_of_one() -> None:
    priorities = make(5)
    priorities.admit(torch.tensor([0]), torch.tensor([True]))
    assert priorities.weight.tolist() == [ONE, 0, 0, 0, 0]
    priorities.update(torch.tensor([0, 4]), torch.tensor([16.0, 25.0]), torch.tensor([True, False]))
    priorities.admit(torch.tensor([1, 2]), torch.tensor([True, False]))
    assert priorities.weight[1] == priorities.weight[0] == pytest.approx(4 * ONE, rel=1e-5)
    assert priorities.weight[2] == priorities.weight[4] == 0
    priorities.update(torch.tensor([0, 1]), torch.tensor([1.0, 4.0]), everything(2))
    priorities.admit(torch.tensor([3]), torch.tensor([True]))
    assert priorities.weight[3] == pytest.approx(4 * ONE, rel=1e-5)


def test_a_million_draws_follow_the_weights_and_never_touch_a_weight_of_zero() -> None:
    priorities = make(300, exponent=1.0)
    priorities.update(torch.arange(300), random_errors(300) + 0.05, torch.arange(300) % 4 > 0)
    counts = torch.zeros(300)
    for _ in range(100):
        counts += torch.bincount(priorities.draw(10_000)[0], minlength=300)
    drawn = priorities.weight > 0
    assert counts[~drawn].sum() == 0
    expected = 1e6 * priorities.weight[drawn].double() / priorities.weight.sum()
    chi_square = ((counts[drawn].double() - expected) ** 2 / expected).sum().item()
    degrees = int(drawn.sum()) - 1
    assert degrees > 200 and abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_a_ring_draws_starts_by_their_errors_and_reads_them_as_a_uniform_one_does() -> None:
    ring, plain = random_ring(7, priority_exponent=1.0), random_ring(7)
    assert ring.priorities is not None
    for _ in range(200):
        batch = ring.sample(64)
        ring.update_priorities(batch, batch.obs[:, 0] + 1)  # the later a row was written, the larger its error
    assert ring.starts().view(-1)[batch.index].all()
    assert batch.obs.mean() > plain.sample(64).obs.mean()
    lane = batch.index // plain.lane_length
    row = plain._row_number(lane, batch.index % plain.lane_length)
    for ours, theirs in zip(batch, plain.transitions(lane, row, batch.weight), strict=True):
        assert torch.equal(ours, theirs)


def test_a_batch_of_a_ring_carries_the_importance_weights_of_its_draw() -> None:
    ring = random_ring(7, priority_exponent=1.0)
    assert ring.priorities is not None
    batch = ring.sample(64)
    ring.update_priorities(batch, batch.obs[:, 0] + 1)
    ring.priorities.importance_exponent.fill_(0.7)
    batch = ring.sample(64)
    drawn = ring.priorities.weight[batch.index].double()
    assert torch.allclose(batch.weight.double(), (drawn.min() / drawn) ** 0.7) and len(batch.weight.unique()) > 10


def test_a_ring_with_nothing_to_draw_gives_weight_zero_and_takes_no_priority() -> None:
    ring = random_ring(7, priority_exponent=1.0)
    assert ring.priorities is not None
    ring.priorities.weight.zero_()
    batch = ring.sample(8)
    ring.update_priorities(batch, torch.ones(8))
    assert not batch.weight.any() and not ring.priorities.weight.any()


def test_rings_of_different_seeds_draw_different_rows() -> None:
    one, other = (random_ring(seed, priority_exponent=0.0) for seed in (7, 8))
    assert one.priorities is not None and other.priorities is not None
    other.priorities.weight.copy_(one.priorities.weight)
    assert not torch.equal(one.sample(64).index, other.sample(64).index)


def test_the_same_rows_are_drawn_after_the_counter_is_set_back() -> None:
    priorities = make(50)
    priorities.admit(torch.arange(50), everything(50))
    first, second = priorities.draw(20)[0], priorities.draw(20)[0]
    priorities.draw_counter.zero_()
    assert torch.equal(priorities.draw(20)[0], first) and not torch.equal(first, second)
