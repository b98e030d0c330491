"""Games of a trained agent to look at: the emulator's own screens beside what the agent thought of them.

The games are the ones that `evaluate` would count with the same protocol, seed and number of envs: pictures are made
beside the observations and change nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastdqn.errors import UsageError
from fastdqn.evaluation import GameTally, quotas, set_up


class Scene(NamedTuple):
    """N games after one env step. A game that was its env's last stays as it ended."""

    screen: npt.NDArray[np.uint8]  # [N, H, W, 3], RGB
    score: npt.NDArray[np.float64]  # [N], so far, unclipped
    q_values: npt.NDArray[np.float32]  # [N, A]
    action: npt.NDArray[np.int32]  # [N], chosen here; ignored where the game has just ended
    over: npt.NDArray[np.bool_]  # [N], no further game follows


class Rollout:
    """Games of the newest agent of a run, one `Scene` per env step. Iterate once, then `close`.

    Args:
        run: a folder that training left behind; it may still be training.
        num_envs: games at once.
        episodes: games to play in all, split evenly over the envs; 0: one each.
        protocol: see `evaluation.protocol_of`.
        epsilon: share of random actions; None is the protocol's own.
        seed: of the games and of the exploration.
        device: auto, cpu or cuda.
        which: see `evaluation.checkpoint_of`.

    Raises:
        UsageError: no such run, no picture of its task, or a value that cannot be.
        CheckpointError: the run holds no checkpoint that can be trusted, or not one of the network it describes.
    """

    def __init__(
        self,
        run: Path,
        *,
        num_envs: int = 1,
        episodes: int = 0,
        protocol: str = "run",
        epsilon: float | None = None,
        seed: int = 1,
        device: str = "auto",
        which: str = "newest",
    ) -> None:
        if episodes != 0 and not num_envs <= episodes <= 100_000:
            raise UsageError(f"episodes={episodes}: give a number from {num_envs} to 100000, or 0 for one of each game")
        self.run, self.protocol, self.seed, self.episodes = run, protocol, seed, episodes or num_envs
        agent = set_up(run, num_envs, seed, which=which, protocol=protocol, epsilon=epsilon, device=device, render=True)
        self.epsilon, self._saved, self._envs, self._player = agent.rules.epsilon, agent.saved, agent.envs, agent.player
        self.trained_frames: int = self._saved.state.get("frames", self._saved.step * agent.config.action_repeat)
        self.env, self.steps_per_second = self._envs.env, self._envs.steps_per_second or 0.0
        self.tally = GameTally(quotas(self.episodes, num_envs))
        self.steps = 0  # scenes so far

    def __iter__(self) -> Iterator[Scene]:
        """Until every env has played its games."""
        self._envs.start()
        last: Scene | None = None
        while True:
            step = self._envs.recv()  # synchronous: all envs, in their order
            playing = self.tally.left_N > 0
            self.tally.add(step)
            action, q_values = self._player.act(step)
            scene = Scene(
                self._envs.render(),
                self.tally.score_N.copy(),
                q_values.cpu().numpy(),
                action,
                self.tally.left_N == 0,
            )
            last = scene if last is None else _hold(scene, last, playing)
            self.steps += 1
            yield last
            if self.tally.complete:
                return
            self._envs.send(action, step.env_id)

    def close(self) -> None:
        """Ends the games."""
        self._envs.close()

    def figures(self) -> dict[str, Any]:
        """What was played, for programs. A game that was left before its end counts under `unfinished_scores` only."""
        return {
            "run": str(self.run),
            "env": self.env,
            "checkpoint": self._saved.path.name,
            "checkpoint_step": self._saved.step,
            "trained_frames": self.trained_frames,
            "protocol": self.protocol,
            "epsilon": self.epsilon,
            "seed": self.seed,
            "episodes": self.episodes,
            "games": [
                {"env": game.env, "score": game.score, "length": game.length, "capped": game.capped}
                for game in self.tally.games
            ],
            "unfinished_scores": self.tally.score_N[self.tally.left_N > 0].tolist(),
            "env_steps": self.steps,
            "seconds": self.steps / self.steps_per_second,
        }

    def summary(self) -> str:
        """What was played, in a line for people."""
        scores = " ".join(f"{game.score:g}" for game in self.tally.games) or "none ended"
        open_games = self.tally.score_N[self.tally.left_N > 0]
        left = f", left at {' '.join(f'{score:g}' for score in open_games)}" if len(open_games) else ""
        return f"{self.env} after {self.trained_frames:,} frames of training: scores {scores}{left}"


def _hold(scene: Scene, last: Scene, playing: npt.NDArray[np.bool_]) -> Scene:
    """`scene` where an env is `playing`, `last` where its games were over before."""
    fields = (
        np.where(playing.reshape(-1, *(1,) * (new.ndim - 1)), new, old) for new, old in zip(scene, last, strict=True)
    )
    return Scene(*fields)
