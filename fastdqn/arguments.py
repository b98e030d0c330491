"""Words of a command line -> a flags dataclass: presets first, then flags; counts in human units."""

import ast
import inspect
import re
from dataclasses import fields, make_dataclass
from fractions import Fraction
from functools import cache
from typing import Annotated, Any

import tyro

from fastdqn.config import ELSEWHERE, SECTIONS, Config, load_preset
from fastdqn.errors import UsageError


def train_config(argv: list[str], *, prog: str, purpose: str | None = None) -> Config:
    """The config that `fastdqn train` makes of these words, not yet resolved; `purpose` is what --help says instead.

    Raises:
        UsageError: no such preset.
        SystemExit: a wrong flag; the parser has said which.
    """
    preset, words, sections = load_preset(preset_of(argv)), _words(Config, argv), _sections()
    kinds = sections.__annotations__.values()
    parts = [kind(*(getattr(preset, name) for name in kind.__annotations__)) for kind in kinds]
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)  # there is no source to look for comments in
    text = purpose or Config.__doc__
    given = tyro.cli(sections, default=sections(*parts), args=words, prog=prog, description=text, config=flat)
    values = {name: value for section in vars(given).values() for name, value in vars(section).items()}
    return Config(**{**values, "preset": preset.preset})  # a file's settings have a name, which is not its path


def preset_of(argv: list[str]) -> str:
    """The value of --preset, the last if several (as tyro does): its values are the defaults of every other flag."""
    preset = Config.preset
    for index, word in enumerate(argv):
        if word == "--preset" and index + 1 < len(argv):
            preset = argv[index + 1]
        elif word.startswith("--preset="):
            preset = word.partition("=")[2]
    return preset


def parse(kind: Any, argv: list[str], *, prog: str) -> Any:
    """An instance of the dataclass `kind`."""
    return tyro.cli(kind, args=_words(kind, argv), prog=prog)


@cache  # the parser keeps what it has read of a class, of a new one it reads everything again
def _sections() -> Any:
    """The flat Config as one of several, which --help shows under `SECTIONS`."""
    (definition,) = ast.parse(inspect.getsource(Config)).body
    assert isinstance(definition, ast.ClassDef)
    sections: dict[str, list[Any]] = {}
    for line, below in zip(definition.body, definition.body[1:], strict=False):
        match line, below:  # a field, and the words below it
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                if name in SECTIONS:
                    section = sections.setdefault(SECTIONS[name], [])
                section.append(
                    (name, Annotated[Config.__annotations__[name], tyro.conf.arg(help=" ".join(text.split()))])
                )
    return make_dataclass("Sections", [(title, make_dataclass(title, section)) for title, section in sections.items()])


def _words(kind: Any, argv: list[str]) -> list[str]:
    """`argv` for the parser of the dataclass `kind`, after what it would have no good words for."""
    names = {field.name.replace("_", "-"): field.type for field in fields(kind)}
    counts = {name for name, of in names.items() if of in (int, int | None)}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if not word.startswith("--"):
            continue
        flag, equals, value = word.partition("=")
        ours = ELSEWHERE.get(flag[2:], "").replace("_", "-")
        if ours in names:
            raise UsageError(f"{flag}: no such flag; use --{ours}")
        name = flag[2:].replace("_", "-").removeprefix("no-")
        if names.get(name) is bool and (equals or following.lower() in ("true", "false")):
            given = value if equals else following
            raise UsageError(f"{name.replace('-', '_')}={given}: a switch takes no value; use --{name} or --no-{name}")
    return expand_counts(argv, counts)


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
