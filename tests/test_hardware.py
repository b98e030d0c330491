"""What a run says of the machine and of the code it ran on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdqn.machine import hardware

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str, at: Path) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", "-C", str(at), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_run_names_the_commit_of_its_checkout_and_whether_files_differ(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fastdqn", tmp_path / "fastdqn", ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q", at=tmp_path)
    git("add", "fastdqn", at=tmp_path)
    git("commit", "-q", "-m", "one", at=tmp_path)
    say = [sys.executable, "-c", "from fastdqn.machine import hardware; print(hardware.commit())"]
    head = git("rev-parse", "--short=12", "HEAD", at=tmp_path)
    for expected in (head, f"{head}+changes"):
        assert subprocess.run(say, capture_output=True, text=True, cwd=tmp_path).stdout == f"{expected}\n"
        (tmp_path / "fastdqn" / "units.py").write_text("# changed\n")


def test_without_a_checkout_the_environment_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "fastdqn" / "machine" / "hardware.py"))
    monkeypatch.delenv("FASTDQN_COMMIT", raising=False)
    assert hardware.commit() is None
    monkeypatch.setenv("FASTDQN_COMMIT", "abc")
    assert hardware.commit() == "abc"


@pytest.mark.parametrize(
    ("present", "cuda", "cpu"), [("gcc", True, False), ("g++", False, True), ("tcc", False, False)]
)
def test_a_compiler_of_the_devices_language_is_looked_for_and_the_one_that_a_variable_names(
    present: str, cuda: bool, cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler, header = tmp_path / present, tmp_path / "Python.h"
    compiler.touch(mode=0o755)
    devices = torch.device("cuda"), torch.device("cpu")
    assert not any(map(hardware.has_compiler, devices)), "without Python's headers"
    header.touch()
    assert tuple(map(hardware.has_compiler, devices)) == (cuda, cpu)
    monkeypatch.setenv("CC", present)
    monkeypatch.setenv("CXX", present)
    assert all(map(hardware.has_compiler, devices))
