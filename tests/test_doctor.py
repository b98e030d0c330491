"""`fastdqn doctor`: it finds a sound machine sound, and what really is broken broken, with the remedy."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.runtime_utils import cache_dir

from fastdqn.cli import main
from fastdqn.commands import doctor
from fastdqn.commands.doctor import Finding
from fastdqn.config import Config
from fastdqn.distributed import Ranks
from fastdqn.errors import UsageError
from fastdqn.machine import control_groups, hardware, preflight
from fastdqn.parts import make_screen, needs


def test_a_machine_that_trains_is_ready_and_every_check_says_what_it_saw(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor", "--json"]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    report = json.loads(line)
    assert report["ready"] and report["failed"] == []
    found = {check["check"]: check for check in report["checks"]}
    assert list(found) == [
        "python", "torch", "cuda", "envpool", "compiler", "bf16", "memory", "cores", "disk",
        "tensorboard", "wandb", "video", "scale",
    ]  # fmt: skip
    for name in ("python", "torch", "envpool", "disk"):
        assert found[name]["state"] == "ok"
    assert torch.__version__ in found["torch"]["says"]
    assert "Breakout stepped, 104 ROMs of 104" in found["envpool"]["says"]
    for check in found.values():
        assert check["says"] and "\n" not in check["says"] + check["remedy"]
        assert bool(check["remedy"]) == (check["state"] != "ok")
        assert check["says"] in printed.err
    assert printed.err.endswith("ready to train\n")


def test_missing_roms_and_a_compiler_that_fails_are_failures_and_the_exit_code_is_1(tmp_path: Path) -> None:
    """In a process of its own, with EnvPool's own variable pointing at an empty folder, and `false` as the compiler."""
    broken = {**os.environ, "ENVPOOL_ASSETS_PATH": str(tmp_path), "CXX": "false", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "fastdqn", "doctor", "--json"], capture_output=True, text=True, timeout=180, env=broken
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == ["envpool", "compiler"] and not report["ready"]
    found = {check["check"]: check for check in report["checks"]}
    assert "FileNotFoundError" in found["envpool"]["says"] and "envpool" in found["envpool"]["remedy"]
    assert "g++" in found["compiler"]["remedy"]
    assert "not ready to train: envpool, compiler" in done.stderr and "Traceback" not in done.stderr


def test_no_compiler_at_all_is_a_warning_because_training_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = doctor.check_compiler()
    assert finding.state == "warning" and finding.remedy == "apt install g++ python3-dev"


def test_the_compiler_is_given_a_kernel_that_no_cache_holds() -> None:
    cache = Path(cache_dir())
    doctor.check_compiler()
    before = set(cache.rglob("*.py"))
    assert doctor.check_compiler().state == "ok"
    assert set(cache.rglob("*.py")) - before


def test_a_missing_extra_is_a_warning_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "video", ("no-such-package", "fastdqn record"))
    assert doctor.check_extra("video") == (
        "warning", "not installed; fastdqn record needs it", "pip install 'fastdqn[video]'"
    )  # fmt: skip


def test_a_check_that_raises_has_failed_with_the_first_line_of_its_reason() -> None:
    def broken() -> Finding:
        raise ImportError("libcudart.so.12: no such file\nand a long story")

    finding = doctor.examine(broken, "reinstall it")
    assert finding == ("failed", "ImportError: libcudart.so.12: no such file", "reinstall it")
    assert doctor.line("torch", finding).splitlines()[1].strip() == "-> reinstall it"


@pytest.mark.parametrize("free", [1_500_000_000, 8_100_000_000, 40_000_000_000])
def test_the_largest_ring_is_the_largest_that_training_accepts(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdqn.machine.preflight.free_bytes", lambda device, ranks=1: free)
    device, (fits, _) = hardware.resolve_device(), doctor.largest_ring(free)

    def check(capacity: int) -> None:
        config = replace(Config(), replay_capacity=capacity).resolved()[0]
        preflight.check(config, device, make_screen(config, device), needs(config, device), Ranks(0, 1, 0, 1))

    check(fits)
    with pytest.raises(UsageError, match=f"--replay-capacity {fits}$"):
        check(fits + 64)


@pytest.mark.parametrize(
    ("free", "state"), [(40_000_000_000, "ok"), (3_000_000_000, "warning"), (400_000_000, "failed")]
)
def test_memory_is_judged_by_the_ring_that_fits(free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdqn.machine.memory.free_bytes", lambda device, ranks=1: free)
    finding = doctor.check_memory()
    assert finding.state == state
    assert (f"--replay-capacity {doctor.largest_ring(free)[0]}" in finding.remedy) == (state == "warning")


@pytest.mark.parametrize(("limit", "state"), [(1.5, "warning"), (2.0, "ok"), (None, "ok")])
def test_a_control_group_that_leaves_less_than_two_cores_is_a_warning(
    limit: float | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_groups, "core_limit", lambda: limit)
    assert doctor.check_cores().state == state
