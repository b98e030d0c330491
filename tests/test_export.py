"""Exported agents: the file answers what the agent answers, on observations of real games, or it is not written."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open
from small_runs import quiet
from torch import Tensor

from fastdqn import checkpoint, parts
from fastdqn.cli import main
from fastdqn.commands import export, model_card
from fastdqn.config import Config, load_preset
from fastdqn.evaluation import evaluate, set_up
from fastdqn.machine import hardware
from fastdqn.networks import QNetwork
from fastdqn.run_folder import RunFolder
from fastdqn.trainer import train

FORMATS = ("pt2", "safetensors")
ROUND_TRIPS = {"pt2": (export.write_pt2, export.load_pt2),
               "safetensors": (export.write_safetensors, export.load_safetensors)}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "q": {},
    "q dueling noisy": {"dueling": True, "noisy": True},
    "c51 dueling noisy": {"head": "c51", "dueling": True, "noisy": True},
    "qrdqn layer_norm": {"head": "qrdqn", "num_quantiles": 16, "layer_norm": True},
    "iqn dueling": {"head": "iqn", "num_quantiles": 8, "num_acting_quantiles": 12, "dueling": True},
    "impala": {"encoder": "impala"},
    "impala iqn noisy spectral": {
        "encoder": "impala", "head": "iqn", "dueling": True, "noisy": True, "spectral_norm": True, "layer_norm": True,
    },
    "wide": {"encoder": "wide"},
}  # fmt: skip


def leave_agent(folder: Path, config: Config, obs_shape: tuple[int, ...], num_actions: int) -> Path:
    """The folder of a run whose agent has random weights: what `train` leaves, without the training."""
    config, _ = config.resolved()
    made = RunFolder(folder)
    made.describe(config.to_toml(), ["fastdqn", "train", "--preset", config.preset], hardware.environment())
    save_agent(folder, config, obs_shape, num_actions, step=2_000)
    return folder


def save_agent(folder: Path, config: Config, obs_shape: tuple[int, ...], num_actions: int, *, step: int) -> None:
    torch.manual_seed(step)
    network = parts.make_network(config, obs_shape, num_actions)
    state = {"obs_shape": list(obs_shape), "num_actions": num_actions, "frames": 4 * step, "updates": 0}
    checkpoint.write(folder / "checkpoints", step, {"model": network.state_dict()}, state)


@pytest.fixture(scope="module")
def catch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("catch") / "run"
    train(
        quiet("catch", run, total_frames=3_000),
        ["fastdqn", "train", "--preset", "catch"],
    )
    return run


@pytest.fixture(scope="module")
def breakout_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(Config(), hidden_size=16, max_episode_steps=60)
    return leave_agent(tmp_path_factory.mktemp("breakout") / "run", config, (4, 84, 84), 4)


@pytest.fixture(scope="module")
def screens(breakout_run: Path) -> Tensor:
    """32 observations of real Breakout. uint8 [32, 4, 84, 84]"""
    return export.observe(set_up(breakout_run, export.NUM_ENVS, 1, epsilon=0.25, device="cpu"))[31::32]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_of_network_answers_the_same_from_its_file(
    kind: str, format: str, screens: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = replace(Config(encoder="nature", hidden_size=16, seed=7), **NETWORKS[kind])
    network = parts.make_network(config, (4, 84, 84), 6).eval()
    write, load = ROUND_TRIPS[format]
    described = {"obs_shape": [4, 84, 84], "num_actions": 6,
                 "config": {field: getattr(config, field) for field in parts.NETWORK_FIELDS}}  # fmt: skip
    write(network, described, tmp_path / f"agent.{format}")
    comparison = export.compare(network, load(tmp_path / f"agent.{format}"), screens)
    assert comparison.passed and comparison.same_action == comparison.observations == 32
    assert comparison.distinct > 20 and comparison.largest_q > 1e-3


def test_every_head_is_among_these_networks_and_has_its_words_on_the_card() -> None:
    heads = get_args(Config.__annotations__["head"])
    assert {settings.get("head", "q") for settings in NETWORKS.values()} == set(heads)
    assert len({model_card.outputs(Config(head=head)) for head in heads}) == len(heads)


def test_the_command_compares_on_1024_real_observations_and_writes_file_and_card(
    breakout_run: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluated = evaluate(breakout_run, episodes=4)
    assert main(["export", str(breakout_run), "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out.splitlines()[-1])
    assert len(printed.out.splitlines()) == 1 and "largest difference in Q" in printed.err
    assert figures["verified"] and figures["observations"] == 1_024 and figures["distinct"] > 500
    assert figures["largest_difference"] <= figures["tolerance"] and figures["largest_q"] > 0
    assert (figures["env"], figures["obs_shape"], figures["num_actions"]) == ("Breakout-v5", [4, 84, 84], 4)
    file = Path(figures["file"])
    assert file == breakout_run / "export" / f"{evaluated['checkpoint']}.pt2"
    assert file.stat().st_size < 4e6  # weights of 0.6 MB, not the observations too
    card = Path(figures["card"]).read_text()
    low, high = evaluated["score_ci95"]
    environment = json.loads((breakout_run / "environment.json").read_text())
    for words in (
        "# Breakout-v5", "preset fast", "uint8 [B, 4, 84, 84]", "divides by 255", "float32 [B, 4]", "FIRE (1)",
        f"| {evaluated['score_mean']:.2f} | {low:.2f} to {high:.2f} |", "`fastdqn train --preset fast`",
        "games cut at 60 env steps", environment["cpu"], f"torch {environment['torch']}", figures["sha256"],
        f"commit {environment['commit'] or 'unknown'}", "over 1,024 observations",
    ):  # fmt: skip
        assert words in card, words


def test_a_pt2_file_plays_batches_of_any_size_without_this_package(catch_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(catch_run), "-o", str(tmp_path / "agent.pt2")]) == 0
    script = (
        "import sys, torch\nq = torch.export.load(sys.argv[1]).module()\n"
        "print([list(q(torch.zeros(size, 50)).shape) for size in (1, 2, 5, 300)])\nassert 'fastdqn' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "agent.pt2")], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[[1, 3], [2, 3], [5, 3], [300, 3]]", done.stderr


def test_a_safetensors_file_says_how_to_rebuild_the_network(catch_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(catch_run), "--format", "safetensors", "-o", str(tmp_path / "agent.safetensors")]) == 0
    with safe_open(tmp_path / "agent.safetensors", framework="pt") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items()}
    assert metadata["obs_shape"] == [50] and metadata["num_actions"] == 3 and metadata["config"]["encoder"] == "mlp"
    assert export.load_safetensors(tmp_path / "agent.safetensors")(torch.zeros(2, 50)).shape == (2, 3)


def test_the_card_of_another_kind_of_agent_says_so(tmp_path: Path) -> None:
    config = replace(load_preset("rainbow"), hidden_size=8, observation="crop", env="Pong", sticky_actions=0.25)
    run = leave_agent(tmp_path / "run", config, (4, 185, 95), 6)
    assert main(["export", str(run), "--format", "safetensors"]) == 0
    card = (run / "export" / "step_000000002000.safetensors.md").read_text()
    for words in (
        "uint8 [B, 4, 185, 95]",
        "mean of the colours",
        "51 atoms",
        "Sticky actions 0.25",
        "was not evaluated",
    ):
        assert words in card, words


def test_the_card_says_which_frames_of_the_emulator_an_agent_sees() -> None:
    seen = {}
    for skip in (1, 4):
        config, figures = replace(Config(), frame_skip=skip), {"obs_dtype": "uint8", "obs_shape": [4, 84, 84]}
        seen[skip] = model_card.inputs(config.resolved()[0], figures)
    assert "A frame is each of the emulator's, grey" in seen[1]  # EnvPool takes no maximum then
    assert "one in 4 of the emulator's, the maximum of it and the one before, grey" in seen[4]


def test_a_file_that_answers_differently_is_not_written_and_the_exit_code_is_1(
    catch_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def load_slightly_wrong(path: Path) -> QNetwork:
        network = load(path)
        with torch.no_grad():
            network.get_parameter("advantage.out.bias")[0] += 1e-3
        return network

    load: Callable[[Path], QNetwork] = export.load_safetensors
    monkeypatch.setattr(export, "load_safetensors", load_slightly_wrong)
    out = tmp_path / "agent.safetensors"
    out.write_text("of before")
    assert main(["export", str(catch_run), "--format", "safetensors", "-o", str(out), "--json"]) == 1
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert not figures["verified"] and 9e-4 < figures["largest_difference"] < 1.1e-3
    assert "nothing was written" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == [out.name] and out.read_text() == "of before"


def test_an_answer_that_is_no_number_does_not_pass() -> None:
    def undefined(obs: Tensor) -> Tensor:
        return torch.full((len(obs), 3), torch.nan)

    network = QNetwork((50,), 3, encoder="mlp", hidden_size=4)
    assert not export.compare(network, undefined, torch.zeros(8, 50)).passed


def test_of_a_run_that_is_being_written_the_newest_whole_checkpoint_is_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, _ = load_preset("catch").resolved()
    run = leave_agent(tmp_path / "run", config, (50,), 3)
    save_agent(run, config, (50,), 3, step=3_000)
    newest = run / "checkpoints" / "step_000000003000" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4])
    (run / "checkpoints" / ".tmp_step_000000004000").mkdir()
    assert main(["export", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint_step"] == 2_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runs/Catch__catch__s2"], "error: run=runs/Catch__catch__s2: no such folder, here or under runs/; did you mean Catch__"),
        (["Catch__catch__s1", "-o", "agent.onnx"], "error: out=agent.onnx: a file of --format pt2 ends in .pt2"),
        (["Catch__catch__s1", "--out", "agent.onnx"], "error: out=agent.onnx"),
        (["Catch__catch__s1", "--output", "agent.onnx"], "error: out=agent.onnx"),  # as it was called once
        (["Catch__catch__s1", "-o", "file/agent.pt2"], "error: out=file/agent.pt2: no such folder"),
        (["Catch__catch__s1", "-o", "nowhere/agent.pt2"], "error: out=nowhere/agent.pt2: no such folder; make it"),
        (["Catch__catch__s1", "--checkpoint", "best"], "checkpoint=best: this run kept none"),
        (["Catch__catch__s1", "-o", "caf\udce9.pt2"], "error: out=caf\\udce9.pt2: is not Unicode text; use another name"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_one_line_with_the_remedy(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    leave_agent(Path("runs/Catch__catch__s1"), load_preset("catch"), (50,), 3)
    Path("file").write_text("no folder")
    assert main(["export", *argv]) in (1, 2)
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(format: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    leave_agent(run, load_preset("catch"), (50,), 3)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, 8_192))\n"
        "from fastdqn.cli import main; sys.exit(main(['export', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", script, str(run), "--format", format]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr == "error: File too large; free some space\n", done.stderr
    assert not list((run / "export").iterdir())


def test_the_exported_config_is_what_a_network_is_built_from() -> None:
    tree = ast.parse(Path(parts.__file__).read_text())
    (make,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "make_network")
    read = {
        node.attr
        for node in ast.walk(make)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    assert read <= set(parts.NETWORK_FIELDS)
    taken = {name for name, kind in inspect.signature(QNetwork).parameters.items() if kind.kind is kind.KEYWORD_ONLY}
    assert taken - {"compute_dtype"} == set(parts.NETWORK_FIELDS) - {"noisy_sigma"}
