"""Raw EnvPool, asked how it behaves. tests/test_envpool_contract.py says what the answers must be.

    python -m tests.contract.probes [NAME...]

This process imports EnvPool and builds no pool; every probe is a child forked from it, as many at a time as there are
cores. So the import is paid once, a probe that dies takes no other with it, and its signal is seen. The last line of
stdout is {probe: what it found, or the signal or exception that ended it}, stderr says what each cost.
"""

import json
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable

from tests.contract import calls, games
from tests.contract.pools import ending

PROBE_SECONDS = 60  # after which the kernel ends a probe that hangs: a Python handler would never run
PROBES = (  # the slowest first
    games.variety, games.determinism, games.screens, games.points_and_lives, calls.silent_nonsense,
    games.action_of_the_last_row, calls.memory, calls.forked_child, calls.blocked_recv, calls.building_holds_the_gil,
    games.seeds, games.episodic_life, games.end_of_a_game, games.fire, calls.orders, calls.interface,
    games.before_the_first_action, games.other_tasks, games.short_tasks, games.shipped, calls.action_just_out_of_range,
    calls.action_far_out_of_range, calls.too_few_actions, calls.env_id_out_of_range, calls.no_noops, calls.no_stack,
)  # fmt: skip


def ask(probe: Callable[[], dict | None], pipe: int) -> None:
    """Runs in the child, and never returns."""
    signal.alarm(PROBE_SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some die on purpose
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    warnings.filterwarnings("ignore", module="gymnasium")
    try:
        answer = probe()
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    with os.fdopen(pipe, "w") as out:
        json.dump(answer, out)
    os._exit(0)


def main() -> int:
    waiting = [probe for probe in PROBES if probe.__name__ in sys.argv[1:] or len(sys.argv) == 1]
    running, answers = {}, {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            probe, (reader, writer) = waiting.pop(0), os.pipe()
            pid = os.fork()
            if pid == 0:
                ask(probe, writer)
            os.close(writer)
            running[pid] = probe.__name__, os.fdopen(reader)
        pid, status, used = os.wait4(-1, 0)
        name, pipe = running.pop(pid)
        with pipe:
            said = pipe.read()
        answers[name] = json.loads(said) if said else ending(status)
        print(f"{name}: {used.ru_utime + used.ru_stime:.2f} s of CPU time", file=sys.stderr)
    print(json.dumps(answers, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
