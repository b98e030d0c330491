"""`fastdqn envs`: the games and tasks by name, their actions, and the scores that people compare with."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from fastdqn.atari import GAMES, RANDOM_AND_HUMAN_SCORES, VECTOR_TASKS, num_actions, parse_env
from fastdqn.commands import JsonFlags, emit
from fastdqn.units import or_dash


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Lists the games with their number of actions and the scores of random play and of a human tester."""

    filter: Annotated[str, tyro.conf.Positional] = ""
    """A part of the name, in any case, or a spelling that --env takes; none: all of them."""


def main(flags: Flags) -> int:
    rows = [describe(name) for name in matching(flags.filter)]
    emit(table(rows), {"envs": rows}, as_json=flags.json)
    return 0


def matching(part: str) -> list[str]:
    """The games and tasks with `part` in their name, games first; else the one that `part` is another spelling of.

    Raises:
        UsageError: there is none; names the nearest ones.
    """
    names = [name for name in (*GAMES, *VECTOR_TASKS) if part.lower() in name.lower()]
    if names:
        return names
    env = parse_env(part)
    return [env.game if env.is_atari else env.canonical]


def describe(name: str) -> dict[str, Any]:
    """What is known of a game or task; None where nobody published a score."""
    env = parse_env(name)
    random, human = RANDOM_AND_HUMAN_SCORES.get(env.game, (None, None))
    return {
        "env": env.canonical,
        "game": name,
        "atari": env.is_atari,
        "actions": num_actions(env),
        "random_score": random,
        "human_score": human,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    width = max(len(row["game"]) for row in rows)
    lines = [f"{'':{width}}  actions  {'random':>9}  {'human':>9}"]
    for row in rows:
        scores = "  ".join(f"{or_dash(row[who], ',.1f'):>9}" for who in ("random_score", "human_score"))
        lines.append(f"{row['game']:{width}}  {row['actions']:>7}  {scores}")
    atari = sum(row["atari"] for row in rows)
    lines.append(
        f"{atari} Atari games and {len(rows) - atari} other tasks. Actions: of the minimal set; --full-action-set makes "
        "18 of any\ngame's, 9 of LostLuggage's and Skiing's. Scores: Wang et al. 2016, no-op starts; - where none is published."
    )
    return "\n".join(lines)
