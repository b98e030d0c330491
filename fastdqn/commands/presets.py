"""`fastdqn presets`: the named sets of defaults, and what each of them changes."""

from dataclasses import asdict
from typing import Any

from fastdqn.config import Config, load_preset, preset_names, preset_text


def describe(name: str) -> str:
    """A preset's first line: what it is."""
    return preset_text(name).splitlines()[0].removeprefix("#").strip()


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
