"""`fastdqn export`: an agent as one file for other programs, compared with the agent on real observations, and its card.

pt2 is the program and the weights: torch alone runs it. safetensors is the weights and what is needed to rebuild the
network: data, nothing that can run. Both are of the network without chance (no noise, quantile fractions spread
evenly) in float32, whatever it trained in. A file takes its place only after it was read back and gave the agent's
Q-values. O observations, A actions.
"""

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from fastdqn import runs
from fastdqn.commands import JsonFlags, emit
from fastdqn.config import Config
from fastdqn.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fastdqn.evaluation import Agent
    from fastdqn.networks import QNetwork

OBSERVATIONS, NUM_ENVS, EPSILON = 1_024, 8, 0.25  # what the file is checked on: the first steps of so many games
BATCH = 64  # observations in one call of the check
TOLERANCE = 1e-5  # of the largest |Q|, at least of 1: float32 rounds at 6e-8, and a sum may be taken in another order


@dataclass(frozen=True)
class Flags(JsonFlags):
    """Writes an agent to a file for other programs, checks it on real observations, and describes it in a model card."""

    run: Annotated[str, tyro.conf.Positional]
    """The run's folder, or its name under runs/; it may still be training."""
    format: Literal["pt2", "safetensors"] = "pt2"
    """pt2: program and weights, for torch.export.load; safetensors: weights, and what rebuilds the network."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o", "--output"])] = ""
    """The file to write; the card is written beside it, with .md appended. Empty: in the run's export/."""
    checkpoint: str = "newest"
    """Which agent: newest; best, which fastdqn eval --keep-best kept; or the env step of one that the run still has."""
    seed: int = 1
    """Seed of the games that the observations are taken from."""


class Comparison(NamedTuple):
    """The reloaded file beside the agent."""

    observations: int
    distinct: int  # of them
    largest_difference: float  # in Q
    tolerance: float
    largest_q: float  # absolute
    same_action: int  # observations for which both choose one action

    @property
    def passed(self) -> bool:
        return self.largest_difference <= self.tolerance  # NaN fails this

    def __str__(self) -> str:
        return (
            f"largest difference in Q {self.largest_difference:.3g} over {self.observations:,} observations "
            f"({self.distinct:,} distinct; |Q| up to {self.largest_q:.4g}, tolerance {self.tolerance:.1e}); "
            f"the same action in {self.same_action:,}"
        )


def main(flags: Flags) -> int:
    run = runs.find(flags.run)  # a mistyped name is told before torch is loaded
    if flags.out:
        destination(flags, Path(flags.out))  # refused before anything is built
    from fastdqn.commands import model_card
    from fastdqn.evaluation import set_up
    from fastdqn.parts import NETWORK_FIELDS

    agent = set_up(run, NUM_ENVS, flags.seed, which=flags.checkpoint, epsilon=EPSILON, device="cpu")
    config, saved, envs, network = agent.config, agent.saved, agent.envs, agent.network
    obs = observe(agent)
    path = destination(flags, run / "export" / f"{saved.path.name}.{flags.format}")
    described = {
        "env": envs.env,
        "obs_shape": list(obs.shape[1:]),
        "num_actions": envs.num_actions,
        "config": {field: getattr(config, field) for field in NETWORK_FIELDS},
    }
    write, load = {"pt2": (write_pt2, load_pt2), "safetensors": (write_safetensors, load_safetensors)}[flags.format]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export_") as folder:
        draft = Path(folder) / path.name
        write(network, described, draft)
        comparison = compare(network, load(draft), obs)
        sha256 = hashlib.sha256(draft.read_bytes()).hexdigest()
        if comparison.passed:
            draft.replace(path)
    figures = {
        "file": str(path),
        "card": f"{path}.md",
        "format": flags.format,
        "sha256": sha256,
        "checkpoint_step": saved.step,
        "obs_dtype": str(obs.dtype).removeprefix("torch."),
        **described,
        **comparison._asdict(),
        "verified": comparison.passed,
    }
    if comparison.passed:
        card = model_card.text(run, config, saved, figures, str(comparison), fire_action=envs.fire_action)
        Path(figures["card"]).write_text(card, encoding="utf-8")
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        text = f"written   {path}, {size}\ncard      {figures['card']}\nverified  {comparison}"
    else:
        text = f"refused   {path}: {comparison}; nothing was written, please report it with this line"
    emit(text, figures, as_json=flags.json)
    return 0 if comparison.passed else 1


def destination(flags: Flags, default: Path) -> Path:
    """The file to write. The folder of the default is made, of another it has to be there."""
    path = Path(flags.out) if flags.out else default
    if path.suffix != f".{flags.format}":
        raise UsageError(f"out={path}: a file of --format {flags.format} ends in .{flags.format}; rename it")
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:  # torch takes it for no path
        raise UsageError(f"out={path}: is not Unicode text; use another name, or -o for another folder") from None
    try:
        if flags.out and not path.parent.is_dir():
            raise UsageError(f"out={path}: no such folder; make it first")
        path.parent.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(f"out={path}: {error.strerror}; name a file in a folder that can be written") from None
    return path


def observe(agent: "Agent") -> "Tensor":
    """What the agent sees in the first steps of its games, one action in four random. uint8 [O, S, H, W] or float32 [O, D]

    Closes its games.
    """
    import torch

    envs = agent.envs
    seen: list[Tensor] = []
    watching = agent.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        envs.start()
        while len(seen) * NUM_ENVS < OBSERVATIONS:
            step = envs.recv()
            action, _ = agent.player.act(step)
            envs.send(action, step.env_id)
    finally:
        watching.remove()
        envs.close()
    return torch.cat(seen)


def compare(network: "QNetwork", exported: "Callable[[Tensor], Tensor]", obs: "Tensor") -> Comparison:
    """Q(s, .) of both over all observations."""
    import torch

    batches = [obs[:1], *obs[1:].split(BATCH)]  # of several sizes, because any size is promised
    with torch.no_grad():
        wanted_OA, given_OA = (torch.cat([q(batch) for batch in batches]) for q in (network, exported))
    largest_q = wanted_OA.abs().max().item()
    return Comparison(
        observations=len(obs),
        distinct=len({one.numpy().tobytes() for one in obs}),
        largest_difference=(wanted_OA - given_OA).abs().max().item(),
        tolerance=TOLERANCE * max(1.0, largest_q),
        largest_q=largest_q,
        same_action=int((wanted_OA.argmax(dim=1) == given_OA.argmax(dim=1)).sum()),
    )


def write_pt2(network: "QNetwork", described: dict[str, Any], path: Path) -> None:
    """The traced program with its weights, for any number of observations; `described` in its metadata.json."""
    import torch

    dtype = torch.float32 if described["config"]["encoder"] == "mlp" else torch.uint8
    example = torch.zeros(2, *described["obs_shape"], dtype=dtype)  # of 1 it would be traced for 1 only
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()  # on a full disk torch's own writer would abort the process
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(described)})
    path.write_bytes(file.getbuffer())


def load_pt2(path: Path) -> "Callable[[Tensor], Tensor]":
    """Only for the file just written: torch reads it by itself, but parts of it may be pickles, which can run code."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own buffer
        return torch.export.load(path).module()


def write_safetensors(network: "QNetwork", described: dict[str, Any], path: Path) -> None:
    """The weights; `described` as JSON texts in the metadata."""
    from safetensors.torch import save

    metadata = {name: json.dumps(value) for name, value in described.items()}
    path.write_bytes(save(network.state_dict(), metadata))


def load_safetensors(path: Path) -> "QNetwork":
    """The network of a file that `fastdqn export --format safetensors` wrote, on the CPU. Nothing in it can run."""
    from safetensors import safe_open

    from fastdqn.parts import make_network

    with safe_open(path, framework="pt") as file:
        described = {name: json.loads(text) for name, text in file.metadata().items()}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    config = Config().updated(described["config"], str(path))
    network = make_network(config, tuple(described["obs_shape"]), described["num_actions"])
    network.load_state_dict(weights)
    return network.eval()
