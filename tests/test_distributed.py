"""Several ranks on Gloo: the same weights on each, the same update as one process, one writer, and an end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import until_first_row

from fastdqn import checkpoint, runs
from fastdqn.config import Config, load_preset
from fastdqn.distributed import Ranks
from fastdqn.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
CATCH = ["--preset", "catch", "--no-compile", "--torch-threads", "1", "--env-threads", "1", "--ui", "plain"]


def torchrun(ranks: int, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.long), 4])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank of a job found, see ranks.py."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    finished(torchrun(request.param, "tests/ranks.py", str(folder)))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def test_weights_and_moments_are_bit_equal_across_ranks_after_200_updates(job: list[dict]) -> None:
    assert len({found["digest"] for found in job}) == 1
    assert all(found["updates"] >= 200 for found in job)


def test_the_update_equals_one_process_with_the_concatenated_batch(job: list[dict]) -> None:
    assert max(found["update"] for found in job) <= 1e-6


def test_importance_weights_are_those_of_the_whole_batch(job: list[dict]) -> None:
    assert max(found["importance"] for found in job) <= 1e-6
    assert all(found["weighed"] for found in job)


def test_any_rank_stops_all_and_the_first_alone_says_when_to_log(job: list[dict]) -> None:
    """Each answer is about the group before: at first about none."""
    decisions = sum(range(1, len(job) + 1))
    expected = [[0, False, False], [decisions, True, False], [0, False, True]]
    assert all(found["agreed"] == expected for found in job)


def test_each_rank_plays_games_of_its_own(job: list[dict]) -> None:
    assert len({found["games"] for found in job}) == len({found["seed"] for found in job}) == len(job)


def test_the_clock_is_the_jobs_and_lags_one_group(job: list[dict]) -> None:
    """Catch is nine decisions and one reset row; every rank has the same clock, a group behind the rows of all."""
    assert len({found["env_steps"] for found in job}) == len({found["target_syncs"] for found in job}) == 1
    rows = sum(found["rows"] for found in job)
    assert 0.85 * (rows - 16) < job[0]["env_steps"] < 0.95 * rows


def test_each_rank_learns_from_its_share_of_the_batch_from_the_jobs_learning_start_on(job: list[dict]) -> None:
    whole = load_preset("catch")
    assert {found["batch_size"] for found in job} == {whole.batch_size // len(job)}
    assert {found["learning_starts"] for found in job} == {whole.learning_starts}


def test_every_ranks_td_errors_become_its_priorities(job: list[dict]) -> None:
    assert all(found["weights"] > 100 for found in job)  # else 0 and 1


def test_the_first_rank_counts_every_ranks_games(job: list[dict]) -> None:
    first, *others = job
    assert first["episodes"] > 1.8 * max(found["episodes"] for found in others)
    games = runs.games(Path(first["folder"]))
    assert len(games.score) == first["episodes"]
    lines = (Path(first["folder"]) / "episodes.csv").read_text().splitlines()[1:]
    assert {int(line.split(",")[4]) for line in lines} == set(range(16))  # numbered through the job
    assert not any(Path(found["folder"]).exists() for found in others), "the others leave nothing behind"


def test_rows_of_all_ranks_are_gathered_on_the_first(job: list[dict]) -> None:
    first, *others = job
    assert first["gathered"] == [[rank, row] for rank in range(1, len(job)) for row in range(rank)]
    assert all(found["gathered"] == [] for found in others)


def test_two_ranks_learn_catch(tmp_path: Path) -> None:
    out = finished(
        torchrun(
            2, "-m", "fastdqn", "train", *CATCH, "--total-frames", "16000", "--run-dir", str(tmp_path / "run"), "--json"
        )
    )
    rows = [line for line in out.splitlines() if line.startswith("{")]
    assert len(rows) == 1, "one rank speaks"
    summary = json.loads(rows[0])
    assert summary["score_mean_100"] >= 0.9
    assert summary["updates"] == (summary["env_steps"] - 1_000) // 8  # replay ratio 8, 64 a batch, of the whole job


@pytest.mark.long  # 75 s on a busy core, for one optimiser
def test_ranks_compile_the_step_of_rmsprop_once(tmp_path: Path) -> None:
    """The averaged gradients lie otherwise in memory than autograd's own; a second compilation would be an error."""
    words = [word for word in CATCH if word != "--no-compile"] + ["--optimizer", "rmsprop", "--total-frames", "4000"]
    finished(torchrun(2, "-m", "fastdqn", "train", *words, "--run-dir", str(tmp_path / "run")))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "finished" and status["updates"] > 300


def test_a_rank_that_dies_ends_the_job_with_a_message_and_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = torchrun(2, "-m", "fastdqn", "train", *CATCH, "--total-frames", "100M", "--checkpoint-period-frames", "4000",
                   "--run-dir", str(run))  # fmt: skip
    while not runs.saved_step(run):  # the first is that of step 0
        assert job.poll() is None, job.communicate()
        time.sleep(0.1)
    os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
    _, err = job.communicate(timeout=30)  # the job has to be over by then
    assert job.returncode != 0
    assert "error: rank 0 of 2 has lost another rank" in err and "exitcode  : -9" in err
    saved = checkpoint.load(run / "checkpoints")
    assert saved.step >= 4_000 and runs.find(str(run))
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


def test_sigterm_to_the_job_stops_all_ranks_at_one_step_and_saves(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = torchrun(2, "-m", "fastdqn", "train", *CATCH, "--total-frames", "100M", "--run-dir", str(run))
    until_first_row(run, job)
    job.terminate()
    _, err = job.communicate(timeout=60)
    assert "has lost another rank" not in err
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted" and checkpoint.load(run / "checkpoints").step == status["env_steps"] > 0


def process_of_rank(rank: int, parent: int) -> int:
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rpartition(")")[2].split()
        if int(fields[1]) == parent:
            environment = (status.parent / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment:
                return int(status.parent.name)
    raise AssertionError(f"no process of rank {rank}")


def test_a_job_goes_on_with_the_same_and_with_another_number_of_ranks(tmp_path: Path) -> None:
    run, total = tmp_path / "run", 2_500
    finished(torchrun(2, "-m", "fastdqn", "train", *CATCH, "--total-frames", str(total), "--run-dir", str(run)))
    state = checkpoint.load(run / "checkpoints").state
    for ranks in (2, 1):
        config, total = run / "config.toml", total + 2_500
        config.write_text(config.read_text().replace(f"total_frames = {total - 2_500}", f"total_frames = {total}"))
        out = finished(torchrun(ranks, "-m", "fastdqn", "resume", str(run), "--ui", "plain"))
        before, state = state, checkpoint.load(run / "checkpoints").state
        again = before["env_steps"] + 1_000
        assert f"learning goes on at env step {again:,}" in out
        assert state["env_steps"] >= total
        assert state["updates"] == before["updates"] + (state["env_steps"] - again) // 8
        assert state["episodes"] > before["episodes"] and len(runs.games(run).score) == state["episodes"]


@pytest.mark.parametrize(("field", "value"), [("num_envs", 66), ("batch_size", 30)])
def test_what_cannot_be_shared_out_equally_is_refused(field: str, value: int) -> None:
    config, _ = Config().updated({field: value}, "test").resolved()
    with pytest.raises(UsageError, match=f"^{field}={value}: 4 ranks share it; use a multiple of 4"):
        config.share(4)


def test_a_share_keeps_periods_and_divides_the_rest() -> None:
    whole, _ = load_preset("nature").resolved()
    part = whole.share(4)
    assert (part.num_envs, part.batch_size) == (whole.num_envs // 4, whole.batch_size // 4)
    assert part.replay_capacity == whole.replay_capacity // 4
    assert part.target_update_period == whole.target_update_period and part.replay_ratio == whole.replay_ratio


def test_alone_there_is_nothing_to_wait_for() -> None:
    alone = Ranks()
    agreed = alone.agree(5, stop=True, log=False)
    assert (agreed.decisions, agreed.stop, agreed.log) == (5, True, False)
    assert alone.seed(3) == 3 and alone.gather([[1.0]], 1) == [] and alone.first
