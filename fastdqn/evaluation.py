"""Playing games to score an agent: the protocol and nothing else.

Each env plays a fixed quota of games and every one of them counts. Taking the first games to finish instead would
favour short games, and in most games a short game is a poor one. The network computes in float32 whatever it trained
in, so that a score does not depend on which machine has bfloat16.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdqn import checkpoint
from fastdqn.analysis.statistics import bootstrap_interval
from fastdqn.atari import FRAME_CAP, human_normalized_score, num_actions
from fastdqn.checkpoint import Checkpoint, CheckpointError
from fastdqn.config import Config, check_range
from fastdqn.envs import EnvStep, VectorEnv
from fastdqn.errors import UsageError
from fastdqn.machine import hardware
from fastdqn.networks import QNetwork
from fastdqn.parts import make_envs, make_network, make_screen
from fastdqn.player import Player
from fastdqn.run_folder import replace_text

SAME_END_ROWS = 256  # two games whose last so many screens are equal were the same game
PROTOCOLS = ("run", "sticky", "noop", "nature")


class Protocol(NamedTuple):
    """How games are played when they count."""

    sticky_actions: float
    noop_max: int
    max_episode_steps: int | None
    fire_after_life_loss: bool
    epsilon: float


def protocol_of(name: str, config: Config, epsilon: float | None = None) -> Protocol:
    """The protocol `name`; "run" is as trained. `epsilon` replaces the protocol's own.

    sticky: Machado et al. 2018, with Dopamine's epsilon: sticky actions 0.25, 108k frames.
    noop:   up to 30 no-ops, no sticky actions, 108k frames.
    nature: Mnih et al. 2015: up to 30 no-ops, 5 minutes of play (18k frames), epsilon 0.05.

    Under each of them FIRE follows a lost life if it did in training: an agent that never had to press it would stand
    still to the cap, and one that learned to needs no help. Every result says which.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"protocol={name}: no such protocol; use one of {', '.join(PROTOCOLS)}")
    if epsilon is not None and not 0 <= epsilon <= 1:
        raise UsageError(f"epsilon={epsilon}: a probability; give a number from 0 to 1")
    if epsilon is None:
        epsilon = 0.05 if name == "nature" else 0.001
    fire = config.fire_after_life_loss != "off"
    if name == "run":
        return Protocol(config.sticky_actions or 0.0, config.noop_max, config.max_episode_steps, fire, epsilon)
    if not config.name.is_atari:
        raise UsageError(f"protocol={name}: is about Atari games, {config.name.canonical} is none; use run")
    cap = (18_000 if name == "nature" else FRAME_CAP) // config.frame_skip
    return Protocol(0.25 if name == "sticky" else 0.0, 30, cap, fire, epsilon)


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """Games each env has to play, fixed before the first one starts. int64 [N], summing to `episodes`"""
    quota_N = np.full(num_envs, episodes // num_envs)
    quota_N[: episodes % num_envs] += 1
    return quota_N


class Game(NamedTuple):
    """One finished game that counts."""

    env: int
    score: float
    length: int  # env steps
    capped: bool  # cut at the step cap
    fingerprint: bytes  # equal for two games that had the same score and ended alike, as after other no-ops


class GameTally:
    """Follows N envs and keeps the first `quota_N[i]` games of env i, no others. Scores are unclipped.

    `left_N` is how many games each env still has to finish, `score_N` float64 the score of its present one.
    """

    def __init__(self, quota_N: np.ndarray) -> None:
        self.games: list[Game] = []
        self.left_N = quota_N.copy()
        self.score_N = np.zeros(len(quota_N))
        self._length_N = np.zeros(len(quota_N), np.int64)
        self._seen_N = [deque[bytes](maxlen=SAME_END_ROWS) for _ in quota_N]

    @property
    def complete(self) -> bool:
        return not self.left_N.any()

    def add(self, step: EnvStep) -> None:
        """Counts one group of rows."""
        ids, done, first = step.env_id, step.done, step.first
        self.score_N[ids] = np.where(first, 0.0, self.score_N[ids] + step.score)
        self._length_N[ids] = np.where(first, 0, self._length_N[ids] + 1)
        for row in np.flatnonzero(self.left_N[ids]):
            env = int(ids[row])
            if first[row]:
                self._seen_N[env].clear()
            self._seen_N[env].append(_digest(step.obs[row].data))
            if done[row]:
                score, length, capped = float(self.score_N[env]), int(self._length_N[env]), bool(step.truncated[row])
                fingerprint = _digest(b"".join([repr(score).encode(), *self._seen_N[env]]))
                self.games.append(Game(env, score, length, capped, fingerprint))
                self.left_N[env] -= 1


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def play(player: Player, envs: VectorEnv, quota_N: np.ndarray) -> list[Game]:
    """Plays until every env has filled its quota; later games of an env do not count."""
    tally = GameTally(quota_N)
    envs.start()
    while True:
        step = envs.recv()
        tally.add(step)
        if tally.complete:
            return tally.games
        action, _ = player.act(step)
        envs.send(action, step.env_id)


def evaluate(
    run: Path,
    *,
    episodes: int = 100,
    epsilon: float | None = None,
    protocol: str = "run",
    num_envs: int = 0,
    seed: int = 1,
    device: str = "auto",
    threads: int = 0,
    which: str = "newest",
    keep_best: bool = False,
) -> dict[str, Any]:
    """Plays `episodes` games with a checkpoint of `run` and saves the result under its `eval/`.

    Args:
        run: a folder that training left behind.
        episodes: games that count, split evenly over the envs.
        epsilon: share of random actions; None is the protocol's own.
        protocol: see `protocol_of`.
        num_envs: games played at once; 0 is one per episode, at most 64. More than there are episodes is as many as
            there are: an env without a quota would be emulated for nothing.
        seed: of the games and of the exploration; the streams are other ones than training's.
        device: auto, cpu or cuda.
        threads: of EnvPool and of torch; 0 is all cores.
        which: see `checkpoint_of`.
        keep_best: keep the agent under `best/` if no other one there was scored higher.

    Raises:
        UsageError: no such run, or a value that cannot be.
        CheckpointError: the run holds no checkpoint that can be trusted, or not one of the network it describes.
    """
    if not 1 <= episodes <= 100_000:
        raise UsageError(f"episodes={episodes}: give a number from 1 to 100000")
    if not 0 <= num_envs <= 4096:
        raise UsageError(f"num_envs={num_envs}: give a number from 1 to 4096, or 0 for one per game up to 64")
    if not 0 <= threads <= 1024:
        raise UsageError(f"threads={threads}: give a number from 1 to 1024, or 0 for all cores")
    started = time.perf_counter()
    num_envs = min(num_envs or 64, episodes)
    agent = set_up(run, num_envs, seed, which=which, protocol=protocol, epsilon=epsilon, device=device, threads=threads)
    config, rules, saved, envs = agent.config, agent.rules, agent.saved, agent.envs
    try:
        games = play(agent.player, envs, quotas(episodes, num_envs))
    finally:
        envs.close()
    result = {
        "run": str(run),
        "env": envs.env,
        "protocol": protocol,
        "sticky_actions": rules.sticky_actions,
        "noop_max": rules.noop_max if envs.is_atari else None,
        "max_episode_steps": envs.max_episode_steps,
        "fire_after_life_loss": rules.fire_after_life_loss and envs.fire_action is not None,
        "epsilon": rules.epsilon,
        "seed": seed,
        "num_envs": num_envs,
        **summarize(games, envs.game),
        "checkpoint": saved.path.name,
        "checkpoint_step": saved.step,
        "frames": saved.state.get("frames", saved.step * config.action_repeat),
        "wall_seconds": time.perf_counter() - started,
        "device": agent.device.type,
        **hardware.environment(),
    }
    settings = f"{protocol}__e{rules.epsilon:g}__g{episodes}__n{num_envs}__s{seed}"  # another setting is another result
    _store(result, run / "eval" / f"{saved.path.name}__{settings}.json")
    if keep_best:
        result["kept"] = _keep_best(saved, result, run / "best")
    return result


def summarize(games: list[Game], game: str) -> dict[str, Any]:
    """The figures of a set of games. The interval is over these episodes and says nothing about other training seeds."""
    scores = np.array([one.score for one in games])
    return {
        "episodes": len(games),
        "score_mean": float(scores.mean()),
        "score_median": float(np.median(scores)),
        "score_ci95": list(bootstrap_interval(scores, [one.fingerprint for one in games])),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "human_normalized": human_normalized_score(game, float(scores.mean())),
        "distinct_games": len({one.fingerprint for one in games}),
        "capped_games": sum(one.capped for one in games),
        "length_mean": float(np.mean([one.length for one in games])),
    }


def config_of(run: Path) -> Config:
    """The resolved config of a run. UsageError where it has none, or one that cannot work."""
    if not (run / "config.toml").is_file():
        raise UsageError(f"run={run}: holds no run (no config.toml); name the folder that training printed")
    return Config.load(run / "config.toml")


class Agent(NamedTuple):
    """A trained agent and its games, ready to be played. `envs` are the caller's to close."""

    config: Config
    rules: Protocol
    saved: Checkpoint
    envs: VectorEnv
    network: QNetwork
    player: Player
    device: torch.device


def set_up(
    run: Path,
    num_envs: int,
    seed: int,
    *,
    which: str = "newest",
    protocol: str = "run",
    epsilon: float | None = None,
    device: str = "auto",
    threads: int = 0,
    render: bool = False,
) -> Agent:
    """The agent of a checkpoint of `run`, and games of its own seeds, synchronous; arguments as of `evaluate`.

    The network computes in full float32. `render` as in `VectorEnv`.
    """
    check_range("seed", seed)
    config = config_of(run)
    rules = protocol_of(protocol, config, epsilon)
    where = hardware.resolve_device(device)
    saved = checkpoint_of(run, which)
    screen = make_screen(config, where)
    if threads > 0:
        torch.set_num_threads(threads)
    hardware.use_tf32(False)
    playing = replace(
        config,
        num_envs=num_envs,
        seed=seed,
        deterministic=True,
        sticky_actions=rules.sticky_actions,
        noop_max=rules.noop_max,
        max_episode_steps=rules.max_episode_steps,
    )
    envs = make_envs(playing, screen, threads, role="eval", render=render)
    try:
        network = network_of(saved, config).to(where)
        player = Player(
            network,
            envs,
            frame_stack=config.frame_stack,
            epsilon=rules.epsilon,
            fire_after_life_loss=rules.fire_after_life_loss,
            seed=seed,
            device=where,
            screen=screen,
        )
    except BaseException:
        envs.close()
        raise
    return Agent(config, rules, saved, envs, network, player, where)


def checkpoint_of(run: Path, which: str = "newest") -> Checkpoint:
    """A checkpoint of a run: its "newest", its "best", which `evaluate` kept, or by env step one that it still has.

    Raises:
        UsageError: `which` is none of them.
        CheckpointError: none can be trusted, or not the one of that step.
    """
    if which == "best":
        if not (run / "best").exists():
            raise UsageError(
                "checkpoint=best: this run kept none; `fastdqn eval --keep-best` or --eval-period-frames does"
            )
        return checkpoint.load(run / "best")
    if which == "newest":
        return checkpoint.load(run / "checkpoints")
    if step := re.fullmatch(r"(?:step_)?(\d{1,12})", which, re.ASCII):
        return checkpoint.load(run / "checkpoints", int(step[1]))
    raise UsageError(
        f"checkpoint={which}: give newest, best, or the env step in the name of a folder under checkpoints/"
    )


def network_of(saved: Checkpoint, config: Config) -> QNetwork:
    """The trained network that acts, of a resolved config, on the CPU, in float32. Needs no games.

    Raises:
        CheckpointError: it is not the one that the config describes.
    """
    obs_shape = make_screen(config, torch.device("cpu")).obs_shape(config.frame_stack)
    actions = num_actions(config.name, full_action_set=config.full_action_set)
    trained = tuple(saved.state.get("obs_shape", ())), saved.state.get("num_actions")
    if trained != (obs_shape, actions):
        raise CheckpointError(
            f"{saved.path}: trained on observations {trained[0]} with {trained[1]} actions, config.toml describes "
            f"{obs_shape} with {actions}; restore the config.toml of this run"
        )
    network = make_network(config, obs_shape, actions)
    try:
        network.load_state_dict(saved.tensors["acting" if config.acting_ema > 0 else "model"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{saved.path}: its model is not the network of config.toml (encoder={config.encoder}, "
            f"head={config.head}, hidden_size={config.hidden_size}); restore the config.toml of this run"
        ) from error
    return network.eval()


def _keep_best(saved: Checkpoint, result: dict[str, Any], root: Path) -> bool | None:
    """Makes the checkpoint the one of `root`, with its score, unless what is there was scored higher. Returns whether.

    None: `root` cannot be read or written, or its agent was scored by another protocol or epsilon, which says nothing about this one.
    It stays as it is then. That is told, and no reason to throw a score away.
    """
    score = {
        "eval_score_mean": result["score_mean"],
        "eval_protocol": result["protocol"],
        "eval_epsilon": result["epsilon"],
    }
    draft = root.with_name(f".{root.name}_{os.getpid()}")  # a run's own evaluation and one by hand may end at one time
    try:
        try:
            before = checkpoint.load(root).state if checkpoint.checkpoints(root) else {}
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove that folder to begin a new one") from error
        for what, given in (("protocol", result["protocol"]), ("epsilon", result["epsilon"])):
            if (of := before.get(f"eval_{what}", given)) != given:  # an older version wrote no epsilon
                raise CheckpointError(f"{root}: its agent was scored by {what} {of}; evaluate with --{what} {of}")
        if before.get("eval_score_mean", -np.inf) > result["score_mean"]:
            return False
        checkpoint.write(draft, saved.step, saved.tensors, {**saved.state, **score})
        if root.exists():
            shutil.rmtree(root)
        draft.rename(root)
    except (OSError, CheckpointError) as error:
        print(f"warning: not kept as best: {error}", file=sys.stderr)
        return None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _store(result: dict[str, Any], path: Path) -> None:
    """Games that were played are not thrown away because a folder is read-only: that is a warning."""
    try:
        path.parent.mkdir(exist_ok=True)
        replace_text(path, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        print(f"warning: result not saved as {path}: {error.strerror}", file=sys.stderr)
