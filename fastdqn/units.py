"""Numbers for people: counts, times and sizes in few characters."""

from collections.abc import Callable
from typing import Any


def count(value: float) -> str:
    """1234 -> 1.23k, 12300000 -> 12.3M; whole numbers below 1,000 as they are."""
    scaled, suffix = _scaled(value)
    return f"{scaled:.{2 if abs(scaled) < 10 else 1}f}{suffix}" if suffix else f"{value:.0f}"


def short(value: float) -> str:
    """1500 -> 1.5k, 12000000 -> 12M, 0.25 -> 0.25: a number beside a tick."""
    scaled, suffix = _scaled(value)
    return f"{scaled:.4g}{suffix}"


def _scaled(value: float) -> tuple[float, str]:
    """1500 -> 1.5, "k"."""
    limits = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
    return next(((value / limit, suffix) for limit, suffix in limits if abs(value) >= limit), (value, ""))


def or_dash(value: Any, form: str | Callable[[Any], str]) -> str:
    """The value as a specification like ".2f" or a function like `count` writes it; "-" where it is None."""
    if value is None:
        return "-"
    return format(value, form) if isinstance(form, str) else form(value)


def counted(number: object, what: str) -> str:
    """1 trial, 4 trials."""
    return f"{number} {what}" + "s" * (str(number) != "1")


def cores(number: object) -> str:
    """1 core, 4 cores; "?" where a run does not say."""
    return counted(number, "core")


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"


def duration(seconds: float) -> str:
    """3720 -> 1h02m, 312 -> 5m12s, 42 -> 42s."""
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def size(nbytes: int) -> str:
    """7064000512 -> 7.06 GB, 92000000 -> 92 MB, 300000 -> 0.3 MB."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.2f} GB"
    return f"{nbytes / 1e6:.0f} MB" if nbytes >= 1e7 else f"{nbytes / 1e6:.1f} MB"
