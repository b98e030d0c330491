"""`fastdqn presets`: the named sets of defaults, and what each of them changes."""

import tomllib
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from fastdqn.commands import JsonFlags, emit
from fastdqn.config import Config, load_preset, preset_names, preset_text


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Lists the presets, or prints one of them."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """The preset to print as TOML, with the values that it takes over from the defaults; none: a list of all."""


def main(flags: Flags) -> int:
    names = [flags.name] if flags.name else preset_names()
    text = whole(flags.name) if flags.name else table()
    figures = {
        name: {"description": describe(name), "changes": changes(name), "values": values(name)} for name in names
    }
    emit(text, figures, as_json=flags.json)
    return 0


def describe(name: str) -> str:
    """A preset's first line: what it is."""
    return preset_text(name).splitlines()[0].removeprefix("#").strip()


def whole(name: str) -> str:
    """A preset's own lines, and below them the values that it takes over: again TOML, and as a file the same settings."""
    config, own = load_preset(name), preset_text(name).rstrip()
    set_here = {"preset", *tomllib.loads(own)}
    taken = [line for line in config.to_toml().splitlines() if line.partition(" = ")[0] not in set_here]
    return "\n".join([own, "", "# what it takes over:", *taken])


def table() -> str:
    """All presets, one line each."""
    names = preset_names()
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {describe(name)}" for name in names)


def values(name: str) -> dict[str, Any]:
    """All fields of a preset's config."""
    return asdict(load_preset(name))


def changes(name: str) -> dict[str, Any]:
    """The fields in which a preset differs from `Config`'s defaults."""
    default = asdict(Config())
    return {field: value for field, value in values(name).items() if value != default[field] and field != "preset"}
