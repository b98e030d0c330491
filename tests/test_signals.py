"""Ctrl-C and SIGTERM: answered between two groups, and answered for a loop that is stuck in somebody else's code."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import until_first_row

from fastdqn import checkpoint
from fastdqn.machine.signals import StopRequest

# the loop calls EnvPool's own recv when nothing is in flight: it blocks in C++ for good and ignores every signal
BLOCKED = """
import sys
from fastdqn import envs
from fastdqn.cli import main
recv, calls = envs.VectorEnv.recv, 0
def stuck(self):
    global calls
    calls += 1
    if calls == 400:
        print("blocked", flush=True)
        while True:
            self._pool.recv()
    return recv(self)
envs.VectorEnv.recv = stuck
sys.exit(main(sys.argv[1:]))
"""
# the main thread holds in a C function while the run is being built, as in a compiler
BUILDING = """
import ctypes, sys
from fastdqn import run
from fastdqn.cli import main
def build(*_, **__):
    print("building", flush=True)
    while True:
        ctypes.CDLL(None).usleep(10**9) or ctypes.PyDLL(None).Py_GetVersion()
run.build = build
sys.exit(main(sys.argv[1:]))
"""
# a checkpoint takes longer to write than a loop that does not answer is given
SAVING = """
import sys, time
from fastdqn import checkpoint
from fastdqn.machine import signals
from fastdqn.cli import main
signals.LAST_RESORT_SECONDS = 0.5
signals.StopRequest.__init__.__defaults__ = (0.5,)
write, first = checkpoint.write, True
def slow(*parts, **how):
    global first
    if first and parts[1] > 0:
        first = False
        print("saving", flush=True)
        time.sleep(4)
    write(*parts, **how)
checkpoint.write = slow
sys.exit(main(sys.argv[1:]))
"""
ARGV = ["train", "--preset", "catch", "--total-frames", "100M", "--no-compile", "--torch-threads", "1", "--ui", "quiet"]


def started(script: str, run: Path, word: str, *more: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *ARGV, *more, "--run-dir", str(run)], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == word
    except BaseException:  # the time limit's as well: nothing else would end a run of 100M frames
        process.kill()
        raise
    time.sleep(0.3)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_blocked_in_recv_is_saved_and_ends_with_the_signals_code(number: int, code: int, tmp_path: Path) -> None:
    process = started(BLOCKED, tmp_path / "run", "blocked")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code
    assert checkpoint.load(tmp_path / "run" / "checkpoints").state["env_steps"] > 2_000


def test_a_save_in_progress_is_waited_for(tmp_path: Path) -> None:
    """The loop waits for a replay that is being written, and so answers late; what it waits for must not be thrown away."""
    process = started(
        SAVING, tmp_path / "run", "saving", "--checkpoint-replay", "full", "--checkpoint-period-frames", "3000"
    )  # fmt: skip
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert checkpoint.load(tmp_path / "run" / "checkpoints").large is not None


def test_a_deterministic_run_blocked_in_recv_keeps_its_last_boundary(tmp_path: Path) -> None:
    process = started(
        BLOCKED, tmp_path / "run", "blocked", "--deterministic", "--checkpoint-period-frames", "2000", "--num-envs", "16"
    )  # fmt: skip
    before = checkpoint.load(tmp_path / "run" / "checkpoints").step
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert checkpoint.load(tmp_path / "run" / "checkpoints").step == before


def test_a_run_that_is_being_built_ends_too(tmp_path: Path) -> None:
    process = started(BUILDING, tmp_path / "run", "building")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


def test_a_request_is_remembered_answered_and_leaves_the_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(grace_seconds=0.2) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process at once
        assert stop.requested and stop.exit_code == 143
        time.sleep(0.5)  # beyond the grace: nothing ends the process
    assert signal.getsignal(signal.SIGTERM) == before and signal.set_wakeup_fd(-1) == -1


def test_a_second_hangup_amid_the_first_ones_handler_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs it between any two instructions of the first one's."""
    before, set_handler, nested = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.signal, []
    with StopRequest() as stop:

        def interrupted(number, handler):
            result = set_handler(number, handler)
            if not nested:
                nested.append(number)
                stop._remember(signal.SIGHUP, None)
            return result

        monkeypatch.setattr(signal, "signal", interrupted)
        stop._remember(signal.SIGHUP, None)
        monkeypatch.undo()
        assert nested and stop.requested and stop.exit_code == 129
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, before)


def test_a_loop_that_shows_life_or_saves_is_waited_for_and_a_stuck_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    stop = StopRequest(grace_seconds=0.1)
    looks = iter([False, True, False, False])  # of the saving: after each, one more grace period
    monkeypatch.setattr(stop, "_end", lambda number: (ended.append(number), stop._answered.set()))
    stop.saving = lambda: next(looks)
    living = threading.Timer(0.05, lambda: setattr(stop, "signs_of_life", 1))
    living.start()
    started = time.monotonic()
    stop._wait(signal.SIGTERM)
    assert ended == [signal.SIGTERM] and time.monotonic() - started > 0.35  # life, a save, after it, and the end


HANGING = """
import os, signal, threading, time
from fastdqn.machine import signals
signals.LAST_RESORT_SECONDS = 0.5
with signals.StopRequest(grace_seconds=0.1) as stop:
    stop.on_ignored = threading.Event().wait
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_save_that_hangs_does_not_keep_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", HANGING], timeout=30).returncode == 143


TWICE = """
import os, signal, time
from fastdqn.machine.signals import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests themselves may be in the background
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested
    time.sleep(0.3)  # the thread that heard it has seen the answer
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_a_second_ctrl_c_acts_as_it_would_have_before_and_is_not_complained_of() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_ends_a_run_saved_unless_nohup_said_otherwise(ignored: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "fastdqn", "train", "--preset", "catch", "--no-compile", "--torch-threads", "1",
               "--total-frames", "100M", "--run-dir", str(run)]  # fmt: skip
    process = subprocess.Popen(
        [*(["nohup"] if ignored else []), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may be under nohup
    )  # fmt: skip
    try:
        until_first_row(run, process)
        rows = len((run / "metrics.jsonl").read_text().splitlines())
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)  # a terminal that closes sends two
        if ignored:
            while len((run / "metrics.jsonl").read_text().splitlines()) < rows + 2:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()  # where the test fails
    assert process.returncode == (143 if ignored else 129), out.decode()
    assert checkpoint.load(run / "checkpoints").step > 0
