"""The ring against a list-of-games model, its draw against the uniform law, and its size against 2^31."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay_oracle import Case, check

from fastdqn import replay
from fastdqn.replay import ReplayRing, stack_rows

CPU = torch.device("cpu")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    stack, n_step = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return Case(
        seed=draw(st.integers(0, 2**32)),
        lanes=draw(st.integers(1, 3)),
        lane_length=draw(st.integers(max(6, stack + n_step + 1), 16)),
        stack=stack,
        n_step=n_step,
        rounds=draw(st.integers(1, 50)),
        end_rate=draw(st.sampled_from([0.02, 0.15, 0.4])),
        life_loss_terminal=draw(st.booleans()),
        reward_clip=draw(st.booleans()),
        seam_rate=draw(st.sampled_from([0.0, 0.1])),
    )


@settings(max_examples=2_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_start_and_only_starts_read_back_as_the_games_were_played(case: Case) -> None:
    check(replay, case)


@pytest.mark.long
@pytest.mark.parametrize("quarter", range(4))  # two hours of one core in all: -k "0]" to "3]" shares it out
@settings(max_examples=250_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(case=cases())
def test_a_million_histories_read_back_as_they_were_played(quarter: int, case: Case) -> None:
    check(replay, case)


def random_ring(
    seed: int = 0,
    *,
    lanes: int = 5,
    lane_length: int = 40,
    uneven: bool = True,
    stack: int = 1,
    priority_exponent: float | None = None,
) -> ReplayRing:
    """A ring of vectors, or of tiny screens if they are stacked, filled past its end in most lanes, with many game ends."""
    shape, dtype = ((1,), torch.float32) if stack == 1 else ((2, 2), torch.uint8)
    ring = ReplayRing(
        capacity=lanes * lane_length,
        num_envs=lanes,
        obs_shape=shape,
        obs_dtype=dtype,
        stack=stack,
        n_step=3,
        gamma=0.9,
        reward_clip=False,
        life_loss_terminal=False,
        seed=seed,
        device=CPU,
        priority_exponent=priority_exponent,
    )
    torch.manual_seed(seed)
    for step in range(2 * lane_length):
        lane = torch.arange(lanes if not uneven or step % 3 else lanes - 2)
        done = torch.rand(len(lane)) < 0.2
        flags = torch.zeros(len(lane), dtype=torch.bool)
        ring.append(lane, torch.full((len(lane), *shape), step).to(dtype), torch.rand(len(lane)), done, done, flags)
    return ring


def draws(ring: ReplayRing, rounds: int) -> torch.Tensor:
    """How often each row was drawn; slots of weight 0 are no draws."""
    counts = torch.zeros(ring.num_envs * ring.lane_length, dtype=torch.int64)
    for _ in range(rounds):
        batch = ring.sample(10_000)
        counts += torch.bincount(batch.index[batch.weight > 0], minlength=counts.numel())
    return counts


@pytest.mark.parametrize("lane_length", [9, 40, 400])
def test_sampling_is_uniform_over_exactly_the_starts(lane_length: int) -> None:
    """In rings that have wrapped, with lanes of unequal fill, and with few starts."""
    ring = random_ring(lane_length, lane_length=lane_length)
    starts = ring.starts().view(-1)
    counts = draws(ring, 100)
    assert counts[~starts].sum() == 0, "a draw outside the starts"
    seen, degrees = counts[starts].double(), int(starts.sum()) - 1
    assert degrees > 10
    chi_square = ((seen - seen.mean()) ** 2 / seen.mean()).sum().item()
    assert abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_a_ring_that_is_partly_filled_is_sampled_uniformly_too() -> None:
    ring = random_ring(3, lane_length=40)
    ring.count.copy_(torch.tensor([38, 31, 12, 7, 3]))  # lanes that have not been full yet
    starts = ring.starts().view(-1)
    counts = draws(ring, 30)
    assert counts[~starts].sum() == 0
    seen, degrees = counts[starts].double(), int(starts.sum()) - 1
    chi_square = ((seen - seen.mean()) ** 2 / seen.mean()).sum().item()
    assert degrees > 10 and abs(chi_square - degrees) < 5 * (2 * degrees) ** 0.5


def test_no_dummy_row_is_ever_sampled() -> None:
    ring = random_ring(4)
    for _ in range(100):
        assert not ring.storage["done"].view(-1)[ring.sample(1_000).index].any()


def test_a_slot_without_a_start_gets_weight_zero_and_is_counted() -> None:
    ring = random_ring(5)
    ring.storage["done"].fill_(True)
    batch = ring.sample(32)
    assert batch.weight.tolist() == [0.0] * 32
    assert int(ring.failed_slots) == 32
    ring.count.zero_()
    assert not ring.sample(8).weight.any() and int(ring.failed_slots) == 40  # nor has an empty ring one


def test_the_draw_gives_the_same_rows_eager_and_compiled() -> None:
    eager, compiled = random_ring(6), random_ring(6)
    draw = torch.compile(compiled.sample, fullgraph=True, dynamic=False)
    for _ in range(3):
        assert torch.equal(eager.sample(50).index, draw(50).index)


def test_capacity_is_allocated_at_once_and_nbytes_is_its_size() -> None:
    ring = ReplayRing(
        capacity=1_000, num_envs=10, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=4, n_step=3, gamma=0.99,
        reward_clip=True, life_loss_terminal=True, seed=0, device=CPU,
    )  # fmt: skip
    assert ring.storage["frame"].shape == (10, 100, 84, 84) and ring.storage["frame"].dtype == torch.uint8
    assert ring.nbytes == 1_000 * (84 * 84 + 1 + 4 + 1 + 1 + 1) + 10 * 8


def test_too_few_rows_per_lane_and_stacked_vectors_are_refused() -> None:
    settings = {"num_envs": 4, "n_step": 3, "gamma": 0.9, "reward_clip": False, "life_loss_terminal": False, "seed": 0,
                "device": CPU}  # fmt: skip
    with pytest.raises(ValueError, match="replay_capacity=28"):
        ReplayRing(capacity=28, obs_shape=(8, 8), obs_dtype=torch.uint8, stack=4, **settings)
    with pytest.raises(ValueError, match="frame_stack=2"):
        ReplayRing(capacity=100, obs_shape=(8,), obs_dtype=torch.float32, stack=2, **settings)


def test_a_ring_of_more_than_two_gib_reads_back_every_region_eager_and_compiled() -> None:
    """Row 304,348 holds byte 2^31; a 32-bit index anywhere would read the wrong frame or crash."""
    rows = 310_000
    ring = ReplayRing(
        capacity=rows, num_envs=1, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=2, n_step=1, gamma=0.99,
        reward_clip=True, life_loss_terminal=True, seed=0, device=CPU,
    )  # fmt: skip
    assert ring.storage["frame"].nbytes > 2**31
    lane, no, zero = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), torch.zeros(1)
    places = [0, 1, 304_347, 304_348, 304_349, rows - 2, rows - 1]
    for mark, row in enumerate(places, start=1):
        ring.count.fill_(row)
        ring.append(lane, torch.full((1, 84, 84), mark, dtype=torch.uint8), zero, no, no, no)
    ring.count.fill_(rows)
    expected = [[1, 1], [1, 2], [0, 3], [3, 4], [4, 5], [0, 6], [6, 7]]
    where = torch.tensor(places)

    def observation(lane: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return ring._frames(stack_rows(ring._done, lane, row, 2, rows).view(-1))

    for read in (observation, torch.compile(observation, fullgraph=True)):
        obs = read(torch.zeros_like(where), where)
        assert obs[:, :, 0, 0].tolist() == expected and obs[:, :, 83, 83].tolist() == expected


@pytest.mark.parametrize("priority_exponent", [None, 0.7])
def test_compiled_it_draws_and_reads_the_same(priority_exponent: float | None) -> None:
    """The very same rows, from a ring that is filled past its end and goes on; only returns may differ by rounding."""
    rings = [random_ring(3, stack=3, priority_exponent=priority_exponent) for _ in range(2)]
    lane, no = torch.tensor([4, 0, 2]), torch.zeros(3, dtype=torch.bool)
    before = [tensor.clone() for tensor in rings[1].stored().values()]
    rings[1].compile(lane, 32)
    assert all(torch.equal(old, new) for old, new in zip(before, rings[1].stored().values(), strict=True))
    with torch.compiler.set_stance("fail_on_recompile"):
        for turn in range(60):
            batches, newest = [], []
            for ring in rings:
                obs = torch.full((3, 2, 2), turn + 100, dtype=torch.uint8)
                ring.append(
                    lane, obs, torch.full((3,), 0.3), no, torch.tensor([turn % 7 == 0, turn % 5 == 0, False]), no
                )
                newest.append(ring.latest(lane))
                batches.append(ring.sample(32))
                ring.record_action(lane, torch.full((3,), turn % 4))
            assert torch.equal(*newest)
            for name, eager, compiled in zip(batches[0]._fields, *batches, strict=True):
                same = torch.allclose(eager, compiled) if eager.dtype == torch.float32 else torch.equal(eager, compiled)
                assert same and eager.dtype == compiled.dtype and eager.shape == compiled.shape, name
    assert rings[0].draw_counter == rings[1].draw_counter and rings[0].failed_slots == rings[1].failed_slots
