"""Words of a command line -> a flags dataclass: presets first, then flags; counts in human units."""

import re
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import tyro

from fastdqn.config import Config, load_preset
from fastdqn.errors import UsageError

# what other programs call our flags, where it is too far from our name for the parser's own suggestions
ELSEWHERE = {"--lr": "learning-rate", "--game": "env"}


def train_config(argv: list[str], *, prog: str, purpose: str | None = None) -> Config:
    """The config that `fastdqn train` makes of these words, not yet resolved; `purpose` is what --help says instead.

    Raises:
        UsageError: no such preset.
        SystemExit: a wrong flag; the parser has said which.
    """
    preset = load_preset(preset_of(argv))
    config = parse(Config, argv, default=preset, prog=prog, purpose=purpose)
    return replace(config, preset=preset.preset)  # a file's settings have a name, which is not its path


def preset_of(argv: list[str]) -> str:
    """The value of --preset, the last if several (as tyro does): its values are the defaults of every other flag."""
    preset = Config.preset
    for index, word in enumerate(argv):
        if word == "--preset" and index + 1 < len(argv):
            preset = argv[index + 1]
        elif word.startswith("--preset="):
            preset = word.partition("=")[2]
    return preset


def parse(kind: Any, argv: list[str], *, default: Any, prog: str, purpose: str | None = None) -> Any:
    """An instance of the dataclass `kind`; `default` gives what argv leaves out, None: the fields' own defaults.

    `purpose` is the first line of --help, None: the docstring of `kind`.
    """
    names = {field.name.replace("_", "-"): field.type for field in fields(kind)}
    counts = {name for name, of in names.items() if of in (int, int | None)}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if not word.startswith("--"):
            continue
        flag, equals, value = word.partition("=")
        if (ours := ELSEWHERE.get(flag)) in names:
            raise UsageError(f"{flag}: no such flag; use --{ours}")
        name = flag[2:].replace("_", "-").removeprefix("no-")
        if names.get(name) is bool and (equals or following.lower() in ("true", "false")):
            given = value if equals else following
            raise UsageError(f"{name.replace('-', '_')}={given}: a switch takes no value; use --{name} or --no-{name}")
    return tyro.cli(
        kind,
        args=expand_counts(argv, counts),
        prog=prog,
        description=purpose,
        **({} if default is None else {"default": default}),
    )


# two digits of exponent: 1e999999999 would take all memory
_COUNT = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?(?:e\d{1,2})?)([kMB]?)", re.IGNORECASE)


def expand_counts(argv: list[str], counts: set[str]) -> list[str]:
    """Writes 40M, 250k and 1e6 out in digits after the flags that count something; anything else is left as it is.

    Raises:
        UsageError: what such a flag has is no whole number.
    """
    expanded, counting, field = [], False, ""
    for word in argv:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            counting = flag[2:].replace("_", "-") in counts
            field = flag[2:].replace("-", "_")
            expanded.append(f"{flag}={_digits(value, field)}" if counting and equals else word)
        else:
            expanded.append(_digits(word, field) if counting else word)
            counting = False
    return expanded


def _digits(text: str, field: str) -> str:
    match = _COUNT.fullmatch(text)
    if match is not None and len(text) <= 100:
        # a Fraction, because a float loses the last digits of a seed beyond 2^53
        value = Fraction(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}[match[2].lower()]
        if value.denominator == 1:
            return str(value.numerator)
    try:
        int(text)  # a negative one, for its range to be told; beyond 4,300 digits Python converts none
    except ValueError:
        if text != "None":
            raise UsageError(f"{field}={text}: give a whole number, as 40M, 250k, 1e6 or 5000") from None
    return text
