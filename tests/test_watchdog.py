"""A process that is stuck in a blocking call ends, with its stacks and with exit code 1; one that is not goes on."""

import signal
import subprocess
import sys
import time

import pytest


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)


STALLED_POOL = """
import sys, threading
from fastdqn.envs import VectorEnv

def save():
    open(sys.argv[1], "w").write(threading.current_thread().name)

envs = VectorEnv("Pong", num_envs=4, seed=0, num_threads=1, stall_seconds=1.0, on_stall=save)
envs.start()
envs.recv(), envs.recv()
envs._in_flight = 4  # nothing is: this recv blocks for good
envs.recv()
"""


def test_a_blocked_recv_dumps_all_stacks_saves_and_ends_with_exit_code_1(tmp_path):
    saved = tmp_path / "saved"
    done = run(STALLED_POOL, str(saved))
    assert done.returncode == 1
    assert "error: EnvPool (Pong-v5) has not answered for 1 s" in done.stderr
    assert "in recv" in done.stderr and "envs.py" in done.stderr  # the blocked thread's stack
    assert "watchdog.py" in done.stderr  # and the watchdog's own
    assert "watchdog" in saved.read_text()  # saved by the watchdog's thread: the main thread cannot


STUCK = """
import io, sys, threading, time
from fastdqn.machine.watchdog import Watchdog

def save():
    print("saving", flush=True)
    {save}

{before}
watchdog = Watchdog("the test", 0.3, save, grace_seconds=0.5)
with watchdog:
    threading.Event().wait(30)
print("went on")
"""


@pytest.mark.parametrize(
    ("save", "before"),
    [
        ("raise OSError('disk full')", ""),
        ("sys.exit(0)", ""),
        ("time.sleep(30)", ""),
        ("open('/dev/zero', 'rb').read(10**8); sum(range(10**12))", ""),  # hangs while it holds the GIL
        ("pass", "sys.stderr = io.StringIO()"),
        ("pass", "sys.stderr.close(); sys.stderr = None"),
    ],
    ids=["save fails", "save exits", "save hangs", "save hogs", "stderr is a notebook's", "stderr is closed"],
)
def test_nothing_that_goes_wrong_on_the_way_keeps_the_process_alive(save, before):
    done = run(STUCK.format(save=save, before=before))
    assert done.returncode == 1
    assert done.stdout.startswith("saving\n") and "went on" not in done.stdout
    assert ("disk full" in done.stderr) == ("disk full" in save)
    assert ("Timeout (" in done.stderr) == ("time.sleep" in save or "sum(" in save)  # the last resort, for hangs only


def test_many_short_waits_are_no_stall_however_long_they_are_together():
    done = run("""
import time
from fastdqn.machine.watchdog import Watchdog
watchdog = Watchdog("the test", 1.0)
for _ in range(5):
    with watchdog:
        time.sleep(0.35)  # seen by several looks of the thread
for _ in range(30):
    with watchdog:
        time.sleep(0.005)
time.sleep(1.2)  # outside the block
print("went on")
""")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_a_closed_watchdog_lets_any_wait_be():
    done = run("""
import time
from fastdqn.machine.watchdog import Watchdog
watchdog = Watchdog("the test", 0.2)
watchdog.close()
with watchdog:
    time.sleep(1.0)
print("went on")
""")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_a_process_that_was_stopped_in_mid_wait_has_not_stalled():
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            """
import sys
from fastdqn.machine.watchdog import Watchdog
watchdog = Watchdog("the test", 2.0)
with watchdog:
    print("waiting", flush=True)
    sys.stdin.readline()
print("went on")
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    child.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # longer than the stall, as after Ctrl-Z
    child.send_signal(signal.SIGCONT)
    time.sleep(0.5)  # long enough for the watchdog's thread to look
    out, err = child.communicate("go on\n", timeout=30)
    assert (child.returncode, out) == (0, "went on\n"), err


def test_an_error_inside_the_wait_comes_through():
    from fastdqn.machine.watchdog import Watchdog

    watchdog = Watchdog("the test", 60.0)
    with pytest.raises(KeyError), watchdog:
        raise KeyError
    watchdog.close()
