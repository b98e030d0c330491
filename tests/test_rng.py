"""The counter hash: the same bits everywhere, uniform, and without overlap between streams."""

import torch

from fastdqn import rng

MASK = (1 << 64) - 1


def splitmix64(key: int, counter: int, lane: int) -> int:
    """The same hash in plain Python integers."""
    z = (key + 0x9E3779B97F4A7C15 * (counter * 1_000_000_007 + lane + 1)) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_tensor_bits_equal_plain_integers() -> None:
    key = rng.role_key(3, "test")
    for counter in (0, 1, 12_345_678_901):
        words = rng.bits(key, torch.tensor(counter), torch.arange(50))
        assert [int(word) & MASK for word in words] == [splitmix64(key, counter, lane) for lane in range(50)]


def test_compiled_bits_equal_eager_bits() -> None:
    key, lane = rng.role_key(0, "test"), torch.arange(1000)
    compiled = torch.compile(lambda counter: rng.bits(key, counter, lane), fullgraph=True)
    for step in range(3):
        counter = torch.tensor(step)
        assert torch.equal(compiled(counter), rng.bits(key, counter, lane))


def test_uniforms_are_uniform_and_successive_counters_uncorrelated() -> None:
    key, lane = rng.role_key(1, "test"), torch.arange(100_000)
    rows = torch.stack([rng.uniform(rng.bits(key, torch.tensor(step), lane)) for step in range(8)]).double()
    assert rows.min() >= 0.0 and rows.max() < 1.0
    counts = torch.histc(rows, bins=256, min=0, max=1)
    expected = rows.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 160 < chi_square < 360  # 255 degrees of freedom: mean 255, standard deviation 22.6
    correlation = torch.corrcoef(rows)
    assert (correlation - torch.eye(8)).abs().max() < 0.02


def test_below_stays_below_and_reaches_every_value() -> None:
    words = rng.bits(rng.role_key(2, "test"), torch.tensor(0), torch.arange(10_000))
    for n in (1, 7, torch.tensor(7)):
        drawn = rng.below(words, n)
        assert set(drawn.tolist()) == set(range(int(n)))


def test_neighbouring_seeds_and_roles_get_unrelated_keys() -> None:
    keys = {rng.role_key(seed, role) for seed in range(1000) for role in ("explore", "sample", "env")}
    assert len(keys) == 3000
    assert all(0 <= key < 2**63 for key in keys)


def test_normals_have_the_moments_and_the_tails_of_the_normal_distribution() -> None:
    z = rng.normal(rng.bits(rng.role_key(4, "test"), torch.tensor(3), torch.arange(1_000_000))).double()
    assert torch.isfinite(z).all()
    for power, expected in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert abs((z**power).mean() - expected) < 0.03
    for edge, share in ((1.0, 0.31731), (2.0, 0.04550), (3.0, 0.00270)):
        assert abs((z.abs() > edge).double().mean() - share) < 5 * (share / 1_000_000) ** 0.5
