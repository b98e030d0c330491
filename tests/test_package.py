"""What the repository promises about itself: commands, import order, and what must never appear in the code."""

import ast
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_runs import TINY

from fastdqn import checkpoint
from fastdqn.run import Run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastdqn"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
SOURCES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("fastdqn", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# A module imports only from rows below its own.
ROWS = [
    {"__main__"},
    {"cli"},
    {"commands/sweep"},
    {"commands/presets", "commands/resume", "commands/eval", "commands/profile", "commands/record", "commands/play"},
    {"commands/envs", "commands/doctor", "commands/export"},
    {"commands/plot", "commands/compare", "commands/report"},
    {"commands/model_card"},
    {"commands/__init__"},
    {"arguments", "sweeps/scale"},
    {"trainer", "rollout"},
    {"run", "evaluation"},
    {"plan", "progress"},
    {"parts", "analysis/comparison"},
    {"logs", "saver", "pipeline", "periodic_eval", "player", "sweeps/trials", "machine/preflight"}
    | {"analysis/history", "analysis/figures"},
    {"learner", "envs", "replay", "checkpoint", "dashboard", "run_folder", "machine/signals", "staging"},
    {"distributed", "runs"},
    {"analysis/page"},
    {"analysis/charts"},
    {
        "analysis/__init__",
        "sweeps/__init__",
        "metrics",
        "large_tensors",
        "tracking",
        "priorities",
        "networks",
        "losses",
        "exploration",
        "schedules",
        "machine/memory",
        "machine/watchdog",
        "graphs",
        "screens",
        "profiling",
    },
    {"encoders", "analysis/statistics"},
    {"layers"},
    {"machine/hardware", "rng", "config"},
    {"atari", "machine/__init__", "machine/control_groups", "units"},
    {"errors"},
    {"__init__"},
]
SEES_CONFIG = {"arguments", "trainer", "run", "evaluation", "parts", "plan", "machine/preflight", "analysis/history"}
SEES_CONFIG |= {f"commands/{name}" for name in ("presets", "resume", "profile", "doctor", "export", "model_card")}
SEES_CONFIG |= {"commands/report", "commands/sweep", "commands/play", "progress"}


def imports_of(module: str) -> set[str]:
    """The fastdqn modules that `module` imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastdqn":
            parts = node.module.split(".")[1:]
            inside = ["/".join([*parts, name.name]) for name in node.names]
            whole = "/".join(parts) if "/".join(parts) in MODULES else "/".join([*parts, "__init__"])
            found.update(name if name in MODULES else whole for name in inside)
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[1] for name in node.names if name.name.startswith("fastdqn."))
    return found


def test_imports_point_downward_only() -> None:
    row_of = {module: row for row, modules in enumerate(ROWS) for module in modules}
    assert set(MODULES) == set(row_of), "a new module needs its place in ROWS"
    for module in MODULES:
        for imported in imports_of(module):
            assert row_of[imported] > row_of[module], f"{module} imports {imported}, which is not below it"


def test_only_these_rooms_and_commands_see_the_config_object() -> None:
    assert {module for module in MODULES if "config" in imports_of(module)} == SEES_CONFIG


def test_only_envs_imports_envpool() -> None:
    importers = {
        module for module in MODULES if re.search(r"(import|from) envpool", (PACKAGE / f"{module}.py").read_text())
    }
    assert importers == {"envs"}


def test_only_the_learner_and_the_ring_compile_what_trains() -> None:
    callers = {m for m in MODULES if "torch.compile(" in (PACKAGE / f"{m}.py").read_text()}
    assert callers == {"learner", "replay", "commands/doctor"}  # which tries whether it works


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_that_can_run_code_is_loaded(path: str) -> None:
    modules = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    calls = {"torch.load", "np.load", "numpy.load", "eval", "exec"}
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            assert not modules & {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.split(".")[0] not in modules
            assert not calls & {f"{node.module}.{name.name}" for name in node.names}
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in calls


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"config"}))  # config is the list of all options
def test_a_room_is_no_longer_than_400_lines(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 400


def test_the_training_loop_fits_on_one_screen() -> None:
    tree = ast.parse((PACKAGE / "trainer.py").read_text())
    (train,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train")
    assert train.end_lineno is not None and train.end_lineno - train.lineno < 80


def test_continuous_integration_runs_the_readmes_own_test_command() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m venv .venv && ")]
    assert len(commands) == 2
    assert commands[0].endswith("fastdqn train --num-envs 64 --preset quick")
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[1].endswith(".venv/bin/pytest -n auto")


def test_torch_is_pinned_without_a_local_suffix() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, but for a preset that ends within seconds."""
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.+?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastdqn.config.load_preset", lambda name: replace(TINY, preset=name, total_frames=2_400))
    names: dict[str, Any] = {}
    exec(block, names)
    run = names["run"]
    assert isinstance(run, Path) and (tmp_path / run / "status.json").is_file()
    assert len(list((tmp_path / run / "eval").iterdir())) == 1
    td_error, q_values, (hidden,) = (names[name] for name in ("td_error", "q_values", "hidden"))
    assert td_error.shape == (256,) and td_error.min() >= 0 and q_values.shape == (256, 4) and hidden.shape == (256, 16)
    look = names["look"]
    assert isinstance(look, Run) and look.clock.updates == checkpoint.load(run / "checkpoints").state["updates"]
