"""One flat frozen dataclass owns every default; presets are TOML files of a source's values; errors that teach.

Units: an env step is one decision of one env, a frame is an emulator frame (4 per env step on Atari).
"""

import difflib
import json
import os
import re
import reprlib
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fastdqn.atari import FRAME_CAP, EnvName, fire_action, parse_env
from fastdqn.errors import UsageError


@dataclass(frozen=True)
class Config:
    """Trains a deep Q-network. Counts take 40M, 250k, 1e6."""

    env: str = "Breakout"
    """Game or task in any spelling: Breakout, BreakoutNoFrameskip-v4, ALE/Breakout-v5 (sticky), CartPole-v1."""
    preset: str = "fast"
    """Named set of defaults that flags override; fastdqn presets lists them. Or a TOML file, also a run's config.toml,
    whose run_dir is left out."""
    num_envs: int = 64
    """Games played at once [N]. Changes speed, not the algorithm."""
    total_frames: int = 40_000_000
    """Emulator frames to train for; an env step is 4 on Atari, 1 elsewhere. CleanRL's Atari runs: 40M."""
    seed: int = 1
    """Seed of the run; every stream of randomness is hashed from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the ring and the networks live; auto takes CUDA where this torch has it."""

    replay_capacity: int = 1_000_000
    """Frames in the replay ring, stored once each, 7,056 bytes on Atari. Mnih et al. 2015: 1M. With 400,000 and
    the replay ratio of 8 Breakout stands still; a smaller ring wants a lower ratio."""
    replay_ratio: float = 8.0
    """Transitions sampled per transition generated. Mnih et al. 2015: 32 every 4 env steps = 8."""
    batch_size: int = 256
    """Transitions per update [B]; larger batches mean fewer updates at the same replay ratio. Clark et al. 2024: 256."""
    learning_starts: int = 20_000
    """Env steps before the first update. Hessel et al. 2018 (Rainbow): 20k."""
    n_step: int = 3
    """Steps of the return [n]. Hessel et al. 2018: 3."""
    gamma: float = 0.99
    """Discount factor [γ] per env step. Mnih et al. 2015: 0.99."""
    reward_clip: bool = True
    """Clamp rewards to [-1, 1] for learning; scores stay unclipped. Mnih et al. 2015."""
    life_loss_terminal: bool = True
    """A lost life ends the return, the game goes on. Mnih et al. 2015."""
    prioritized: bool = False
    """Draw transitions by their last TD error instead of uniformly. Schaul et al. 2016."""
    priority_exponent: float = 0.5
    """How much errors count [α]: 0 uniform, 1 in proportion. Hessel et al. 2018: 0.5."""
    importance_exponent: float = 0.4
    """Correction of the bias of prioritised draws [β] at the learning start. Schaul et al. 2016: 0.4."""
    importance_exponent_end: float = 1.0
    """The same at the end of the run; it rises in a straight line. Schaul et al. 2016: 1."""

    optimizer: Literal["adam", "rmsprop"] = "adam"
    """Kingma & Ba 2015, or Tieleman & Hinton 2012."""
    learning_rate: float = 2.5e-4
    """Step size of the optimiser [α]. Schmidt and Schmied 2021: 2.5e-4 for a batch of 256. With 5e-4 and
    torch's first weights Pong's units die."""
    learning_rate_end: float = 0.0
    """The same at the end of the run, to which it falls in a straight line from the learning start; 0: it stays as it is."""
    optimizer_eps: float = 2e-5
    """Added to the optimiser's denominator. Clark et al. 2024: 0.005 / batch, Hessel's 1.5e-4 for 32. With --prioritized
    less, 3e-6: its importance weights make gradients smaller."""
    rmsprop_decay: float = 0.95
    """Decay of RMSprop's running means. Mnih et al. 2015: 0.95."""
    rmsprop_centered: bool = False
    """RMSprop divides by the gradient's standard deviation rather than its size. Mnih et al. 2015: yes."""
    max_grad_norm: float = 10.0
    """Global gradient norm above which gradients are scaled down; 0 = never. Wang et al. 2016: 10."""
    loss: Literal["auto", "huber", "mse"] = "auto"
    """Of the TD error [δ] of head q: huber clips its gradient to [-1, 1] (Mnih et al. 2015), mse does not; auto: huber."""
    double: bool = True
    """Choose the next action with the online network. Van Hasselt et al. 2016."""
    munchausen: bool = False
    """Add the log-policy to the reward and value the next state softly. Vieillard et al. 2020."""
    munchausen_scale: float = 0.9
    """Weight of the log-policy [α]. Vieillard et al. 2020: 0.9."""
    munchausen_temperature: float = 0.03
    """Of the softmax policy [τ]. Vieillard et al. 2020: 0.03."""
    munchausen_floor: float = -1.0
    """Least value of the temperature times the log-policy [l0]. Vieillard et al. 2020: -1."""
    target_update_period: int = 8_000
    """Env steps between copies of the online into the target network [C]. Hessel et al. 2018: 8k (32k frames)."""
    polyak: float = 0.0
    """Share of the online network mixed into the target after each update [τ], instead of copies; 0: copies."""
    acting_ema: float = 0.0
    """Act, and be evaluated, with a running average of the online weights that keeps this share of itself at each update;
    0: with the online weights. Schwarzer et al. 2023 (BBF) act with theirs, which is also the target: 0.995."""

    epsilon_end: float = 0.01
    """Final share of random actions [ε]. Hessel et al. 2018 and Dopamine: 0.01."""
    epsilon_decay_steps: int = 250_000
    """Env steps from the learning start over which epsilon falls from 1 to its end. Dopamine: 250k."""

    head: Literal["q", "c51", "qrdqn", "iqn"] = "q"
    """q: values; c51: atoms (Bellemare et al. 2017); qrdqn, iqn: fixed, drawn quantiles (Dabney et al. 2018a, b)."""
    num_atoms: int = 51
    """Atoms of c51. Bellemare et al. 2017: 51."""
    value_limit: float = 10.0
    """c51's atoms reach from -value_limit to value_limit, of discounted learning rewards. Bellemare et al. 2017: 10."""
    num_quantiles: int = 200
    """Quantiles learned per state and action [N]. Dabney et al. 2018: 200 for qrdqn, 64 for iqn."""
    num_acting_quantiles: int = 32
    """Quantiles that iqn averages to act [K]. Dabney et al. 2018b: 32."""
    dueling: bool = False
    """Separate streams for the state's value and the actions' advantages. Wang et al. 2016."""
    noisy: bool = False
    """Explore by learned noise on the weights behind the encoder. Fortunato et al. 2018."""
    noisy_sigma: float = 0.5
    """Initial size of that noise [σ0]. Fortunato et al. 2018: 0.5."""
    encoder: Literal["auto", "nature", "wide", "impala", "mlp"] = "auto"
    """nature: 3 convolutions (Mnih et al. 2015); wide: the same with 128 last channels (Space Invaders tutorial);
    impala: 15 convolutions (Espeholt et al. 2018); mlp: vectors; auto: nature for images, mlp for vectors."""
    impala_width: int = 1
    """Factor on the channels of impala. Clark et al. 2024 (Beyond The Rainbow): 2."""
    spectral_norm: bool = False
    """Divide impala's residual convolutions by their largest singular value. Miyato et al. 2018."""
    weight_init: Literal["torch", "lecun"] = "torch"
    """First weights: torch's own, or lecun: normal of variance 1 / inputs, biases of 0 (LeCun et al. 1998), with which Q
    differs between states from the start: for games whose early rewards are all alike, as Pong's."""
    layer_norm: bool = False
    """Normalise each layer's outputs, but the last one's; of a convolution the channels at each pixel. Ba et al. 2016;
    Gallici et al. 2024 (PQN)."""
    hidden_size: int = 512
    """Units of the hidden layers. Mnih et al. 2015: 512."""

    observation: Literal["standard", "crop"] = "standard"
    """standard: grey, 84x84; crop: rows 15 to 200 and columns 30 to 125 of the raw screen, mean of the colours."""
    frame_stack: int = 4
    """Frames in an observation; 1 for vector tasks. Mnih et al. 2015: 4."""
    resize: Literal["auto", "device", "env"] = "auto"
    """Where the screen becomes 84x84: device lets the emulator step faster; auto: device on CUDA, env on a CPU."""
    frame_skip: int = 4
    """Emulator frames per env step on Atari, of several the last two max-pooled. Mnih et al. 2015: 4."""
    sticky_actions: float | None = None
    """Probability of repeating the last action. Machado et al. 2018: 0.25. None: 0.25 for ALE/ names and -v0, else 0."""
    full_action_set: bool = False
    """All 18 actions instead of the game's own; LostLuggage and Skiing have 9. Machado et al. 2018."""
    noop_max: int = 30
    """Random no-ops at the start of a game, at most. Mnih et al. 2015: 30."""
    max_episode_steps: int | None = None
    """Env steps after which a game is cut. None: 108k frames on Atari (30 minutes of play), the task's own elsewhere."""
    fire_after_life_loss: Literal["auto", "on", "off"] = "auto"
    """Execute FIRE after a lost life, and store it: Breakout stands still otherwise. auto: where the game has FIRE."""

    deterministic: bool = False
    """One synchronous pool and deterministic kernels: the same seed gives the same weights, bit for bit, but slower."""
    compile: bool = True
    """torch.compile what acts and what learns; --no-compile runs the same functions eagerly."""
    cuda_graphs: bool = True
    """Replay the device's work as captured CUDA graphs; --no-cuda-graphs launches each kernel by itself, slower. CUDA only."""
    precision: Literal["auto", "bf16", "tf32", "fp32"] = "auto"
    """Arithmetic of the networks (weights stay float32); auto: bf16 where the processor has it. tf32: CUDA only."""
    env_threads: int = 0
    """EnvPool's threads; 0: chosen from the cores."""
    torch_threads: int = 0
    """PyTorch's CPU threads; 0: chosen from the cores."""

    checkpoint_period_frames: int = 4_000_000
    """Frames between checkpoints; also after 10 minutes without one, if the replay is not saved, and at the end."""
    checkpoint_replay: Literal["auto", "none", "full"] = "auto"
    """Whether a checkpoint holds the replay ring, so that a resumed run need not refill it; auto: if deterministic."""
    keep_checkpoints: int = 2
    """How many stay on the disk, the newest ones; 0: all, to evaluate an agent of any of them later. 27 MB each with Nature's
    network, and the ring where it is saved."""
    eval_period_frames: int = 0
    """Frames between evaluations on games of their own, in the background, each of a checkpoint; best/ keeps the best. 0: none."""
    eval_episodes: int = 32
    """Games of each of them."""
    run_dir: str = ""
    """The run's own folder, made if missing. Empty: runs/{game}__{preset}__s{seed}__{time}."""
    resume: bool = False
    """Go on with the run in run_dir if it has begun, and do nothing if it has finished: one line to start and to restart."""
    ui: Literal["auto", "live", "plain", "quiet"] = "auto"
    """live: a panel; plain: a line every 10 s; quiet: errors only; auto: live on a terminal, else plain."""
    track: Literal["off", "tensorboard", "wandb"] = "off"
    """Also write the metrics for TensorBoard, or for Weights & Biases: offline, unless WANDB_MODE says otherwise."""
    json: bool = False
    """End stdout with one JSON object; everything else goes to stderr."""

    @cached_property
    def name(self) -> EnvName:
        return parse_env(self.env)

    @property
    def action_repeat(self) -> int:
        """Frames per env step."""
        return self.frame_skip if self.name.is_atari else 1

    @property
    def total_env_steps(self) -> int:
        """Env steps of the whole run, rounded up."""
        return -(-self.total_frames // self.action_repeat)

    @property
    def algorithm(self) -> str:
        """Head, encoder, n, optimiser and everything that is switched on, in words."""
        parts = [f"head {self.head}", f"encoder {self.encoder}", f"n {self.n_step}", self.optimizer]
        return ", ".join(parts + [name.replace("_", " ") for name in _SWITCHES if getattr(self, name)])

    def resolved(self, *, loaded: bool = False) -> tuple["Config", list[str]]:
        """This config with every None and every spelling settled, and one note for each thing that was derived.

        Args:
            loaded: it is of a run that exists: what has no effect is a note, for the run was made with it.

        Raises:
            UsageError: a value that cannot work, or a combination.
        """
        useless, notes = self._without_effect()
        if useless and not loaded:
            raise UsageError(useless[0])
        if self.learning_rate_end > self.learning_rate and not loaded:  # as a preset's does, with a flag below it
            raise UsageError(
                f"learning_rate_end={self.learning_rate_end:g}: is above learning_rate={self.learning_rate:g}, which would rise; "
                "give less, or 0 for one that stays"
            )
        self._refuse_combinations()
        changes, derived = self._derived()
        config = replace(self, **changes)
        config._validate()
        return config, notes + useless + derived + config._too_short()

    def _refuse_combinations(self) -> None:
        """Raises UsageError for what the game or task does not have, or another field rules out."""
        env = self.name.canonical
        if not self.name.is_atari:
            if self.resize == "device":
                raise UsageError(f"resize=device: {env} has no screen; use auto or env")
            if self.observation != "standard":
                raise UsageError(f"observation={self.observation}: {env} has no screen; use standard")
            if self.encoder not in ("auto", "mlp"):
                raise UsageError(f"encoder={self.encoder}: {env} has vector observations; use mlp or auto")
        elif self.encoder == "mlp":
            raise UsageError(f"encoder=mlp: {env} has image observations; use nature, impala or auto")
        fire = fire_action(self.name.game, full_action_set=self.full_action_set)
        if self.fire_after_life_loss == "on" and fire is None:
            raise UsageError(f"fire_after_life_loss=on: {env} has no FIRE action; use auto or off")
        if self.checkpoint_replay == "none" and self.deterministic:
            raise UsageError("checkpoint_replay=none: a deterministic run resumes with its replay; use auto or full")
        if self.resume and not self.run_dir:
            raise UsageError("resume=True: of which run? give its folder, --run-dir")
        if self.keep_checkpoints == 1:
            raise UsageError("keep_checkpoints=1: give 2 or more, the newest and one to fall back to, or 0 for all")

    def _derived(self) -> tuple[dict[str, Any], list[str]]:
        """The fields that something else settles, and what of that is worth a note."""
        env, is_atari = self.name.canonical, self.name.is_atari
        changes: dict[str, Any] = {"env": env}
        notes = []
        if self.sticky_actions is None:
            changes["sticky_actions"] = self.name.sticky_actions or 0.0
            notes += [self.name.note] if self.name.note else []
        if is_atari and self.frame_stack == 1:
            notes.append(f"frame_stack 1: the network sees no motion in {env}; the usual is 4")
        if not is_atari and self.frame_stack != 1:
            changes["frame_stack"] = 1
            notes.append(f"frame_stack {self.frame_stack} -> 1: {env} has vector observations")
        if not is_atari and self.reward_clip:
            notes.append(f"reward_clip: of {env}'s rewards only the sign counts; --no-reward-clip")
        if self.encoder == "auto":
            changes["encoder"] = "nature" if is_atari else "mlp"
        if self.checkpoint_replay == "auto":
            changes["checkpoint_replay"] = "full" if self.deterministic else "none"
        if self.max_episode_steps is None and is_atari:
            changes["max_episode_steps"] = FRAME_CAP // max(self.frame_skip, 1)
        return changes, notes

    def unsettled(self) -> "Config":
        """A run's config with what is as its other fields imply left open again, for flags on top may imply something else."""
        opened = replace(self, **{name: getattr(Config, name) for name in _SETTLED})
        implied = opened._derived()[0]
        return replace(
            opened, **{name: value for name in _SETTLED if (value := getattr(self, name)) != implied.get(name)}
        )

    def _too_short(self) -> list[str]:
        """What the run ends before, in words."""
        end = self.total_env_steps
        if self.replay_ratio == 0:
            return []
        if self.learning_starts >= end:
            return [
                f"learning_starts {self.learning_starts:,}: the run ends at env step {end:,} and learns nothing; give it "
                "more --total-frames, or a lower --learning-starts"
            ]
        if end - self.learning_starts < self.epsilon_decay_steps and not self.noisy:
            left = 1 - (1 - self.epsilon_end) * (end - self.learning_starts) / self.epsilon_decay_steps
            return [
                f"epsilon_decay_steps {self.epsilon_decay_steps:,}: the run ends before epsilon has fallen, at {left:.2f}; "
                "give it more --total-frames, or fewer --epsilon-decay-steps"
            ]
        return []

    def _without_effect(self) -> tuple[list[str], list[str]]:
        """Fields that were set though something else makes them void, and those that the preset brought."""
        preset = load_preset(self.preset) if self.preset in preset_names() else Config()
        useless, notes = [], []
        for field, (switch, *wanted) in _NEEDS.items():
            value, default, setting = getattr(self, field), getattr(Config, field), getattr(self, switch)
            if setting in wanted or value == default:
                continue
            remedy = f"use {flag(switch, *wanted)}, or {flag(field, default)}"
            if value != getattr(preset, field):
                useless.append(f"{field}={value}: has no effect with {switch}={setting}; {remedy}")
            else:
                notes.append(f"{field}={value} of preset {self.preset} has no effect with {switch}={setting}")
        if self.eval_episodes != Config.eval_episodes and self.eval_period_frames == 0:
            useless.append(f"eval_episodes={self.eval_episodes}: nothing is evaluated; give --eval-period-frames too")
        for field in () if self.name.is_atari else _ATARI_ONLY:
            value = getattr(self, field)
            if value and value not in (getattr(Config, field), getattr(preset, field)):  # resolved, sticky is 0
                useless.append(f"{field}={value}: {self.name.canonical} is no Atari game; leave it out")
        return useless, notes

    def _validate(self) -> None:
        for field in _RANGES:
            check_range(field, getattr(self, field))
        if re.search(r"[\0\ud800-\udfff]", self.run_dir):
            raise UsageError(f"run_dir={self.run_dir}: is not Unicode text; name another folder")
        if self.run_dir.startswith("~"):  # a folder of that name is one that rm -r ~ is meant for
            raise UsageError(
                f"run_dir={self.run_dir}: ~ means home to the shell alone; give the whole path, or --run-dir ~/..."
            )
        rows = self.frame_stack + self.n_step + 1
        if self.learning_starts < self.num_envs * rows:
            raise UsageError(
                f"learning_starts={self.learning_starts}: {self.num_envs} envs need {rows} rows each before the first "
                f"sample; use at least {self.num_envs * rows}"
            )
        if self.replay_capacity < self.num_envs * (rows + 1):
            raise UsageError(
                f"replay_capacity={self.replay_capacity}: {self.num_envs} envs need {rows + 1} rows each; "
                f"use at least {self.num_envs * (rows + 1)}"
            )

    def share(self, ranks: int) -> "Config":
        """What one of so many ranks plays, stores and learns from; the periods stay those of the whole job.

        Raises:
            UsageError: the envs or the batch cannot be shared out equally.
        """
        for field in ("num_envs", "batch_size"):
            if getattr(self, field) % ranks:
                raise UsageError(f"{field}={getattr(self, field)}: {ranks} ranks share it; use a multiple of {ranks}")
        part = replace(
            self,
            num_envs=self.num_envs // ranks,
            batch_size=self.batch_size // ranks,
            replay_capacity=self.replay_capacity // ranks,
            learning_starts=self.learning_starts // ranks,
        )
        part._validate()
        return part

    def to_toml(self) -> str:
        """The config as TOML that `load` reads back equal; a None is left out."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return "".join(f"{name} = {_toml(value)}\n" for name, value in values if value is not None)

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Reads a run's config.toml, resolved.

        Raises:
            UsageError: unreadable, not TOML, a key or type that a Config does not have, or what `resolved` refuses.
        """
        config = cls().updated(_parse(_read(path, str(path)), str(path)), str(path))
        try:
            return config.resolved(loaded=True)[0]
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    def updated(self, values: Mapping[str, Any], source: str) -> "Config":
        """This config with `values` from `source` put in, names and types checked."""
        known = {field.name: field.type for field in fields(self)}
        for name, value in values.items():
            if name not in known and isinstance(value, dict):
                raise UsageError(f"{source}: [{name}]: the fields stand in no table; leave it out")
            if name not in known:
                near = ELSEWHERE.get(name) or difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise UsageError(f"{source}: unknown field {name}; did you mean {near}, or is it a newer fastdqn's?")
            if not _matches(known[name], value):
                words = getattr(known[name], "__args__", ())
                choice = isinstance(value, str) and all(isinstance(word, str) for word in words) and words
                remedy = f": use {' or '.join(words)}" if choice else f" has the wrong type; {_asked(known[name])}"
                raise UsageError(f"{source}: {name}={_shown(value)}{remedy}")
        floats = {name: float(value) for name, value in values.items() if known[name] in (float, float | None)}
        return replace(self, **{**values, **floats})


# what other programs call our fields, where it is too far from our name to be found as the nearest
ELSEWHERE = {"lr": "learning_rate", "game": "env"}
# the first field of each section of `train --help`, as the blank lines above
SECTIONS = {
    "env": "run",
    "replay_capacity": "replay",
    "optimizer": "learning",
    "epsilon_end": "exploration",
    "head": "network",
    "observation": "games",
    "deterministic": "machine",
    "checkpoint_period_frames": "output",
}
# fields that only matter where another field has one of the given values
_NEEDS: dict[str, tuple[Any, ...]] = {
    "loss": ("head", "q"),
    "num_atoms": ("head", "c51"),
    "value_limit": ("head", "c51"),
    "num_quantiles": ("head", "qrdqn", "iqn"),
    "num_acting_quantiles": ("head", "iqn"),
    "noisy_sigma": ("noisy", True),
    "priority_exponent": ("prioritized", True),
    "importance_exponent": ("prioritized", True),
    "importance_exponent_end": ("prioritized", True),
    "munchausen_scale": ("munchausen", True),
    "munchausen_temperature": ("munchausen", True),
    "munchausen_floor": ("munchausen", True),
    "target_update_period": ("polyak", 0.0),
    "rmsprop_decay": ("optimizer", "rmsprop"),
    "rmsprop_centered": ("optimizer", "rmsprop"),
    "impala_width": ("encoder", "impala"),
    "spectral_norm": ("encoder", "impala"),
    "resize": ("observation", "standard"),
}
# None or auto until `resolved`, which finds them from other fields
_SETTLED = ("sticky_actions", "encoder", "checkpoint_replay", "max_episode_steps")
# of Atari's emulator; a task without one has no use for them
_ATARI_ONLY = ("sticky_actions", "noop_max", "full_action_set", "frame_skip")
# what names a run, shows it, or depends on where it runs: two runs that differ in these alone learn alike
NOT_LEARNING = (
    "run_dir", "resume", "ui", "json", "track", "device", "env_threads", "torch_threads", "keep_checkpoints",
)  # fmt: skip
# a run's config.toml has all fields, these in every version; who writes a file of settings by hand does not write them all
_OF_A_RUN = {
    "env", "preset", "num_envs", "total_frames", "seed", "device", "replay_capacity", "replay_ratio", "batch_size",
    "learning_starts", "n_step", "gamma", "learning_rate", "target_update_period", "epsilon_end", "hidden_size", "frame_stack",
    "env_threads", "torch_threads", "run_dir", "ui", "json",
}  # fmt: skip
_SWITCHES = ("double", "dueling", "prioritized", "noisy", "munchausen", "spectral_norm", "layer_norm")
_INT31 = 2**31 - 1
_FILE_LIMIT = 1 << 14  # bytes of a config.toml; a real one has two thousand, and tomllib takes 12 s for the worst 64 kB
# inclusive ranges of what a field may be
_RANGES: dict[str, tuple[float, float]] = {
    "num_envs": (1, 4096),
    "total_frames": (1, 10**12),
    "seed": (0, 2**63 - 1),
    "replay_capacity": (1, 10**10),
    "replay_ratio": (0, 10_000),
    "batch_size": (1, 60_000),
    "learning_starts": (1, 10**12),
    "n_step": (1, 100),
    "gamma": (0, 1),
    "learning_rate": (1e-12, 10),
    "learning_rate_end": (0, 10),
    "optimizer_eps": (1e-12, 1),
    "rmsprop_decay": (0, 1),
    "priority_exponent": (0, 1),
    "importance_exponent": (0, 1),
    "importance_exponent_end": (0, 1),
    "munchausen_scale": (0, 1),
    "munchausen_temperature": (1e-4, 100),
    "munchausen_floor": (-1e9, 0),
    "polyak": (0, 1),
    "acting_ema": (0, 0.99999),
    "num_atoms": (2, 10_000),
    "value_limit": (1e-6, 1e9),
    "num_quantiles": (1, 10_000),
    "num_acting_quantiles": (1, 10_000),
    "noisy_sigma": (1e-6, 100),
    "impala_width": (1, 64),
    "max_grad_norm": (0, 1e9),
    "target_update_period": (1, 10**12),
    "epsilon_end": (0, 1),
    "epsilon_decay_steps": (0, 10**12),
    "hidden_size": (1, 65_536),
    "frame_stack": (1, 8),
    "frame_skip": (1, 60),
    "sticky_actions": (0, 1),
    "noop_max": (1, 1_000),
    "max_episode_steps": (1, _INT31),
    "env_threads": (0, 1_024),
    "torch_threads": (0, 1_024),
    "checkpoint_period_frames": (1, 10**12),
    "keep_checkpoints": (0, 10**6),
    "eval_period_frames": (0, 10**12),
    "eval_episodes": (1, 100_000),
}


def check_range(field: str, value: float | None) -> None:
    """Refuses what the field of a Config may not be."""
    low, high = _RANGES[field]
    if value is not None and not low <= value <= high:  # NaN fails this too
        raise UsageError(f"{field}={value}: give a number from {_bound(low)} to {_bound(high)}")


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    folder = resources.files("fastdqn") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str) -> Config:
    """The defaults with a preset's values put in; a name that ends in .toml is a file, one's own or a run's config.toml.

    A file that names a preset begins with that one's values and is called as it is, else with the defaults and its own name.
    A run's begins with the defaults, for the run did: what an older version did not write is not the preset's of today.

    Raises:
        UsageError: no such preset; names the nearest ones. Or a file that is not one, or has a preset's name.
    """
    if not name.endswith(".toml"):
        return Config(preset=name).updated(_parse(preset_text(name), name), f"preset {name}")
    names, base = preset_names(), Config(preset=Path(name).stem)
    if base.preset in names:
        raise UsageError(
            f"preset={name}: {base.preset} is a preset that ships with fastdqn; give the file another name"
        )
    values = _parse(preset_text(name), name)
    of = values.get("preset")
    if values.keys() >= _OF_A_RUN:
        for own in ("run_dir", "resume", "ui", "json"):  # another run needs another folder, and is shown as asked
            values.pop(own, None)
        return base.updated(values, name).unsettled()
    if of in names:
        base = load_preset(of)
    elif "preset" in values:
        raise UsageError(
            f"{name}: preset={_shown(of)}: no such preset ships with fastdqn; name one of fastdqn presets, or leave it out"
        )
    return base.updated(values, name)


def unchanged(config: Config) -> Config:
    """The config's preset as `train` would resolve it for this config's env: what is derived from the env is no difference."""
    preset = load_preset(config.preset) if config.preset in preset_names() else Config()
    base = preset.resolved()[0]
    if config.env == base.env:
        return base
    try:
        for_env, _ = replace(preset, env=config.env).resolved()
    except UsageError:  # the preset cannot play this env: everything counts as a difference
        return base
    return replace(for_env, env=base.env)


def preset_text(name: str) -> str:
    """A preset's TOML. Raises as `load_preset`."""
    names = preset_names()
    if name.endswith(".toml"):
        return _read(Path(name), f"preset={name}")
    if name not in names and ("/" in name or os.path.exists(name)):
        raise UsageError(
            f"preset={name}: no such preset; a file of settings, as a run's config.toml, ends in .toml: give that"
        )
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
        raise UsageError(f"preset={name}: no such preset; the nearest are {', '.join(near)}")
    return (resources.files("fastdqn") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def _read(path: Path, source: str) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
        text = data.decode("utf-8-sig")  # with the mark at the beginning that some editors put there
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: cannot be read ({error}); name a run's config.toml, or a file like it") from None
    if len(data) > _FILE_LIMIT:
        raise UsageError(f"{source}: has more than {_FILE_LIMIT:,} bytes; name a run's config.toml, or a file like it")
    return text


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers of 4,300 digits, and of brackets in brackets
        raise UsageError(f"{source}: not TOML ({error}); correct it") from None


def _matches(kind: Any, value: Any) -> bool:
    if kind in (int, int | None):
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63  # as TOML has them
    if kind in (float, float | None):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind in (bool, str):
        return isinstance(value, kind)
    return value in kind.__args__  # a Literal


def _asked(kind: Any) -> str:
    """What a field of that type wants in TOML, which has no 10M and writes whole numbers without a point or an e."""
    if kind in (int, int | None):
        return "give a whole number in digits, as 40_000_000"
    if kind in (float, float | None):
        return "give a number without quotes, as 0.25 or 2.5e-4"
    return "give true or false" if kind is bool else "give a text in quotes"


def _shown(value: object) -> str:
    """A value of any type and size, in a few words."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return "(a number of more than 4,300 digits)"


def flag(field: str, *values: Any) -> str:
    """As on a command line: --head qrdqn or iqn, --no-double."""
    name = field.replace("_", "-")
    if isinstance(values[0], bool):
        return f"--{name}" if values[0] else f"--no-{name}"
    return f"--{name} {' or '.join(map(str, values))}"


def _bound(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _toml(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one that TOML escapes besides
    return repr(value)  # repr of a float reads back exactly
