"""One file per further command: a `Flags` dataclass, its help, and `main(flags)`, which returns the exit code.

A module imports torch, EnvPool and matplotlib inside its functions, so that `--help` stays fast. Two differ: profile has
the flags of train and is imported once they are read, and model_card is a part of export.
"""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """The flag that every command has; train and profile have it in their Config."""

    json: bool = False
    """End stdout with one JSON object; everything else goes to stderr."""


@dataclass(frozen=True)
class AgentFlags(JsonFlags):
    """Which agent plays, and by which rules: flags of every command that plays."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or its name under runs/; it may still be training."""
    epsilon: float | None = None
    """Share of random actions. None: the protocol's own, 0.001 unless it says otherwise."""
    protocol: Literal["run", "sticky", "noop", "nature"] = "run"
    """run: as trained; sticky: Machado et al. 2018; noop: 30 no-ops at most; nature: Mnih et al. 2015."""
    seed: int = 1
    """Seed of the games and of the exploration; never shared with training."""
    checkpoint: str = "newest"
    """Which agent plays: newest; best, which --keep-best kept; or the env step of a checkpoint that the run still has."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""

    @property
    def playing(self) -> dict[str, Any]:
        """As keywords of `evaluate` and of `Rollout`."""
        return {
            "epsilon": self.epsilon,
            "protocol": self.protocol,
            "seed": self.seed,
            "which": self.checkpoint,
            "device": self.device,
        }


def emit(text: str, figures: Any, *, as_json: bool) -> None:
    """Text for people on stdout; with `as_json` on stderr instead, and one JSON object as the last line of stdout."""
    print(text, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(figures), flush=True)
