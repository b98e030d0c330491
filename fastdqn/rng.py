"""Random numbers as a pure function of (key, counter, lane): the splitmix64 finaliser in int64 tensor operations.

The same bits come out eager and compiled, on CPU and CUDA, on every torch version, and a checkpoint of a stream is its
counter. `torch.rand(generator=...)` offers none of that: it breaks `fullgraph=True`, and inductor's own `rand` differs
from eager. Source of the constants: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
"""

import hashlib
import math

import torch
from torch import Tensor


def _as_int64(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


_GAMMA, _MIX_1, _MIX_2 = map(_as_int64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_LANES = 1_000_000_007  # lanes per counter value: two counters never share a lane's input


def role_key(seed: int, role: str) -> int:
    """A 63-bit key for one use of randomness, so that streams of one run and of neighbouring seeds do not overlap."""
    digest = hashlib.blake2b(f"{seed}/{role}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _shift_right(z: Tensor, n: int) -> Tensor:
    return (z >> n) & ((1 << (64 - n)) - 1)  # int64 shifts keep the sign; the mask makes the shift logical


def bits(key: int | Tensor, counter: Tensor, lane: Tensor) -> Tensor:
    """64 random bits per lane, int64 in the shape of `counter` broadcast with `lane` (lane < 1e9).

    A key that is a number is compiled in, so that every other seed compiles anew; a 0-d tensor is not.
    """
    z = key + _GAMMA * (counter * _LANES + lane + 1)  # int64 products wrap around, as the hash wants
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def uniform(random_bits: Tensor) -> Tensor:
    """float32 in [0, 1), 24 random bits each."""
    return _shift_right(random_bits, 40).to(torch.float32) * 2.0**-24


def normal(random_bits: Tensor) -> Tensor:
    """float32 of the standard normal distribution, by Box and Muller (1958) from two times 24 bits of each word."""
    first, second = uniform(random_bits), (_shift_right(random_bits, 16) & 0xFFFFFF).to(torch.float32) * 2.0**-24
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)


def below(random_bits: Tensor, n: int | Tensor) -> Tensor:
    """int64 in [0, n). The modulo's bias is below n / 2**63."""
    return _shift_right(random_bits, 1) % n
