"""The soak's rules, on figures by hand, and a short run of the whole: half an hour is for a quiet machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdqn.learner import compiled_graphs
from tests.soak import CAPACITY, Series, judge, sample, thirds

ROOT = Path(__file__).resolve().parent.parent


def run_by_hand(**changes) -> dict[str, bool]:
    """Verdicts on 30 minutes in which nothing grows, but for `changes`: name of a quantity -> its value at minute m."""
    value = {"resident_bytes": lambda m: 1e9 + 1e6 * (m % 3), "threads": lambda m: 12, "descriptors": lambda m: 20 + m % 2,
             "system/compiled_graphs": lambda m: 2, "charts/refused_updates": lambda m: 0,
             "perf/fps": lambda m: 2_500 + 50 * (m % 2), "global_step": lambda m: 40_000 * m,
             "exit_code": lambda m: 130, "failed_slots": lambda m: 0} | changes  # fmt: skip
    samples = [{"seconds": 60.0 * m} | {key: float(value[key](m)) for key in ("resident_bytes", "threads", "descriptors")}
               for m in range(31)]  # fmt: skip
    logged = ("system/compiled_graphs", "charts/refused_updates", "perf/fps", "global_step")
    rows = [{"wall_seconds": 60 * m} | {key: value[key](m) for key in logged} for m in range(31)]
    summary = {"failed_slots": value["failed_slots"](30)}
    return {
        name: held for name, held, _ in judge(samples, rows, {"exit_code": value["exit_code"](30), "summary": summary})
    }


def test_a_run_in_which_nothing_grows_is_held() -> None:
    assert all(run_by_hand().values())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resident memory", {"resident_bytes": lambda m: 1e9 + 1e6 * m}),  # 1 MB a minute
        ("threads", {"threads": lambda m: 12 + m // 20}),
        ("descriptors", {"descriptors": lambda m: 20 + m // 3}),
        ("compiled graphs", {"system/compiled_graphs": lambda m: 2 + (m > 28)}),
        ("refused updates", {"charts/refused_updates": lambda m: int(m > 28)}),
        ("frames/s", {"perf/fps": lambda m: 2_500 * (1 - 0.02 * m)}),
        ("failed slots", {"failed_slots": lambda m: 1}),
        ("ring", {"global_step": lambda m: 2 * CAPACITY}),
        ("the run", {"exit_code": lambda m: 1}),
    ],
)
def test_each_quantity_that_moves_is_not_held_and_no_other_is(name: str, changes: dict) -> None:
    assert [quantity for quantity, held in run_by_hand(**changes).items() if not held] == [name]


def test_growth_in_the_first_third_is_forgiven() -> None:
    assert all(run_by_hand(resident_bytes=lambda m: 1e9 + 1e8 * min(m, 10)).values())


def test_the_thirds_are_of_time_and_the_slope_is_per_hour() -> None:
    assert thirds(Series([0, 600, 1200, 1800], [9.0, 5.0, 6.0, 8.0])) == (5.0, 7.0, 12.0)
    with pytest.raises(ValueError, match="1 values do not fill three thirds: let it run longer"):
        thirds(Series([0], [1.0]))


def test_a_process_is_read_from_outside() -> None:
    program = "import sys; opened = open('/dev/null'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        found = sample(process.pid)
        process.kill()
    assert found["threads"] == 1 and found["descriptors"] == 4 and 1e6 < found["resident_bytes"] < 50e6


def test_a_function_that_is_compiled_again_is_one_more_graph() -> None:
    function, before = torch.compile(lambda x: x.sin() + 1, dynamic=False, backend="eager"), compiled_graphs()
    for size, graphs in ((2, 1), (2, 1), (3, 2)):
        function(torch.ones(size))
        assert compiled_graphs() - before == graphs


@pytest.mark.long
def test_a_short_soak_of_a_real_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.soak", "--minutes", "2", "--period", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode in (0, 1), done.stderr  # two minutes are too short for the ring, and machines are shared
    report = json.loads((out / "soak.json").read_text())
    held = {verdict["name"]: verdict["held"] for verdict in report["verdicts"]}
    assert report["held"] == all(held.values()) == (done.returncode == 0)
    for name in ("threads", "descriptors", "compiled graphs", "refused updates", "failed slots", "the run"):
        assert held[name], done.stdout
    assert len(report["samples"]) > 30 and report["summary"]["updates"] > 0
    assert (out / "soak.png").stat().st_size > 10_000
