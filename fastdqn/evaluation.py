"""Playing games to score an agent: the protocol and nothing else.

Each env plays a fixed quota of games and every one of them counts. Taking the first games to finish instead would
favour short games, and in most games a short game is a poor one.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastdqn import checkpoint, hardware, rng
from fastdqn.atari import human_normalized_score
from fastdqn.config import Config, UsageError
from fastdqn.envs import VectorEnv
from fastdqn.exploration import epsilon_greedy
from fastdqn.networks import QNetwork
from fastdqn.replay import ReplayRing

BOOTSTRAP_RESAMPLES = 10_000


class Protocol(NamedTuple):
    """How games are played when they count."""

    sticky_actions: float
    noop_max: int
    max_episode_steps: int | None
    fire_after_life_loss: bool
    epsilon: float


def protocol_of(name: str, config: Config) -> Protocol:
    """The protocol `name`; "run" is as trained.

    sticky: Machado et al. 2018, with Dopamine's epsilon: sticky actions 0.25, no help after a lost life, 108k frames.
    noop:   up to 30 no-ops, no sticky actions, 108k frames.
    nature: Mnih et al. 2015: up to 30 no-ops, 5 minutes of play (18k frames), epsilon 0.05.
    """
    if name == "run" or not config.name.is_atari:
        fire = config.fire_after_life_loss != "off"
        return Protocol(config.sticky_actions or 0.0, config.noop_max, config.max_episode_steps, fire, 0.001)
    frames = {"sticky": 108_000, "noop": 108_000, "nature": 18_000}[name]
    cap = frames // config.frame_skip
    if name == "sticky":
        return Protocol(0.25, 30, cap, False, 0.001)
    return Protocol(0.0, 30, cap, True, 0.05 if name == "nature" else 0.001)


def quotas(episodes: int, num_envs: int) -> np.ndarray:
    """Games each env has to play, fixed before the first one starts. int64 [N], summing to `episodes`"""
    quota_N = np.full(num_envs, episodes // num_envs)
    quota_N[: episodes % num_envs] += 1
    return quota_N


def bootstrap_interval(scores: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over these episodes (of one trained agent, not over seeds)."""
    draws = np.random.default_rng(seed).choice(scores, size=(BOOTSTRAP_RESAMPLES, len(scores)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def evaluate(
    run: Path,
    *,
    episodes: int = 100,
    epsilon: float | None = None,
    protocol: str = "run",
    num_envs: int = 0,
    seed: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Plays `episodes` games with the newest checkpoint of `run` and saves the result under its `eval/`.

    Raises:
        UsageError: no such run, or a value that cannot be.
        CheckpointError: the run holds no checkpoint that can be trusted.
    """
    config = _config_of(run)
    if not 1 <= episodes <= 100_000:
        raise UsageError(f"episodes={episodes}: give a number from 1 to 100000")
    if epsilon is not None and not 0 <= epsilon <= 1:
        raise UsageError(f"epsilon={epsilon}: a probability; give a number from 0 to 1")
    if not 0 <= num_envs <= 4096:
        raise UsageError(f"num_envs={num_envs}: give a number from 1 to 4096, or 0 for one per game up to 64")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: this torch has no CUDA device; use --device cpu")
    saved = checkpoint.load(run / "checkpoints")
    rules = protocol_of(protocol, config)
    epsilon = rules.epsilon if epsilon is None else epsilon
    num_envs = min(num_envs or 64, episodes)
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    envs = VectorEnv(
        config.env,
        num_envs=num_envs,
        seed=seed,
        role="eval",
        synchronous=True,
        sticky_actions=rules.sticky_actions,
        full_action_set=config.full_action_set,
        noop_max=rules.noop_max,
        max_episode_steps=rules.max_episode_steps,
        frame_skip=config.frame_skip,
    )
    network = QNetwork(
        tuple(saved.state["obs_shape"]), envs.num_actions, encoder=config.encoder, hidden_size=config.hidden_size
    )
    network.load_state_dict(saved.tensors["model"])
    started = time.perf_counter()
    games = play(
        network.to(where).eval(),
        envs,
        quotas(episodes, num_envs),
        frame_stack=config.frame_stack,
        epsilon=epsilon,
        fire_after_life_loss=rules.fire_after_life_loss,
        seed=seed,
        device=where,
    )
    scores = np.array([game.score for game in games])
    result = {
        "run": str(run),
        "env": envs.env,
        "protocol": protocol,
        "sticky_actions": rules.sticky_actions,
        "epsilon": epsilon,
        "episodes": len(games),
        "score_mean": float(scores.mean()),
        "score_median": float(np.median(scores)),
        "score_ci95": list(bootstrap_interval(scores)),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "human_normalized": human_normalized_score(envs.game, float(scores.mean())),
        "distinct_games": len({game.fingerprint for game in games}),
        "capped_games": sum(game.capped for game in games),
        "length_mean": float(np.mean([game.length for game in games])),
        "frames": saved.state["frames"],
        "checkpoint": saved.path.name,
        "seed": seed,
        "wall_seconds": time.perf_counter() - started,
        "cpu": hardware.cpu_name(),
        "torch": torch.__version__,
        "commit": hardware.commit(),
    }
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    temporary = folder / ".result.json"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(folder / f"{saved.path.name}__{protocol}__s{seed}.json")
    return result


class Game(NamedTuple):
    """One finished game that counts."""

    score: float
    length: int  # env steps
    capped: bool  # cut at the step cap
    fingerprint: bytes  # equal for two games in which the same was seen throughout


@torch.no_grad()
def play(
    network: torch.nn.Module,
    envs: VectorEnv,
    quota_N: np.ndarray,
    *,
    frame_stack: int,
    epsilon: float,
    fire_after_life_loss: bool,
    seed: int,
    device: torch.device,
) -> list[Game]:
    """Plays until every env has filled its quota; later games of an env do not count."""
    num_envs = envs.num_envs
    # the ring is the one way that frames become stacks, in training and here; a few rows are enough
    ring = ReplayRing(
        capacity=num_envs * (frame_stack + 2),
        num_envs=num_envs,
        obs_shape=envs.obs_shape,
        obs_dtype=torch.uint8 if envs.is_atari else torch.float32,
        stack=frame_stack,
        n_step=1,
        gamma=1.0,
        reward_clip=False,
        life_loss_terminal=False,
        seed=seed,
        device=device,
    )
    key, share = rng.role_key(seed, "eval explore"), torch.tensor(epsilon, device=device)
    counter = torch.zeros((), dtype=torch.int64, device=device)
    fire = envs.fire_action if fire_after_life_loss else None
    score_N, length_N, left_N = np.zeros(num_envs), np.zeros(num_envs, np.int64), quota_N.copy()
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(num_envs)]
    games: list[Game] = []
    envs.start()
    while left_N.any():
        step = envs.recv()
        score_N[step.env_id] = np.where(step.first, 0.0, score_N[step.env_id] + step.score)
        length_N[step.env_id] = np.where(step.first, 0, length_N[step.env_id] + 1)
        for row, env in enumerate(step.env_id):
            if step.first[row]:
                hashes[env] = hashlib.blake2b(digest_size=16)
            if left_N[env] > 0:
                hashes[env].update(step.obs[row].data)
            if step.done[row] and left_N[env] > 0:
                left_N[env] -= 1
                capped = bool(step.truncated[row])
                games.append(Game(float(score_N[env]), int(length_N[env]), capped, hashes[env].digest()))
        host = step.env_id.astype(np.int64), step.obs, step.reward, step.terminated, step.done, step.life_lost
        env_id, *rows, life_lost = (torch.from_numpy(array).to(device) for array in host)
        ring.append(env_id, *rows, life_lost)
        action = epsilon_greedy(network(ring.latest(env_id)), share, key, counter)
        counter += 1
        if fire is not None:
            action = torch.where(life_lost, fire, action)
        envs.send(action.to("cpu", torch.int32).numpy(), step.env_id)
    envs.close()
    return games


def format_result(result: dict[str, Any]) -> str:
    """The result for people."""
    low, high = result["score_ci95"]
    human = result["human_normalized"]
    lines = [
        f"{result['env']} after {result['frames']:,} frames: {result['episodes']} games, protocol {result['protocol']} "
        f"(sticky {result['sticky_actions']:g}, epsilon {result['epsilon']:g})",
        f"mean {result['score_mean']:.2f}   median {result['score_median']:.2f}   95 % interval {low:.2f} to "
        f"{high:.2f} (bootstrap over these games of one agent)",
        f"lowest {result['score_min']:.0f}   highest {result['score_max']:.0f}   mean length "
        f"{result['length_mean']:.0f} env steps   {result['capped_games']} cut at the step cap",
        "human-normalised: no published human score"
        if human is None
        else f"human-normalised {human:.1%} (0 % random play, 100 % a human tester)",
    ]
    distinct, episodes = result["distinct_games"], result["episodes"]
    if distinct < episodes:
        lines.append(
            f"only {distinct} of the {episodes} games were distinct: fewer independent games than the interval assumes"
        )
    else:
        lines.append(f"all {episodes} games were distinct")
    return "\n".join(lines)


def _config_of(run: Path) -> Config:
    if not (run / "config.toml").is_file():
        raise UsageError(f"run={run}: holds no run (no config.toml); name the folder that training printed")
    return Config.load(run / "config.toml")
