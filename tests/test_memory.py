"""Memory: counted before anything is built, within the control groups' limits; touched at the start; kept when freed."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdqn import atari, parts
from fastdqn.config import Config, load_preset
from fastdqn.distributed import Ranks
from fastdqn.envs import VectorEnv
from fastdqn.errors import UsageError
from fastdqn.machine import preflight
from fastdqn.machine.control_groups import _groups, core_limit, memory_headroom
from fastdqn.machine.memory import free_bytes, required_bytes, row_bytes
from fastdqn.machine.preflight import Need
from fastdqn.metrics import resident_bytes
from fastdqn.networks import QNetwork
from fastdqn.units import size

CPU = torch.device("cpu")
MB = 1_000_000

PROGRAM = """
import resource, sys, torch
from fastdqn.machine.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def allocate():
    [torch.ones(1 << 18) for _ in range(40)]  # 40 tensors of 1 MB, all alive, all freed
for _ in range(3):
    allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# prints by how much resident memory grew, and the size the ring says it has, both in bytes
RING = """
import torch
from fastdqn.metrics import resident_bytes
from fastdqn.replay import ReplayRing
before = resident_bytes()
ring = ReplayRing(
    capacity=20_000, num_envs=8, obs_shape=(84, 84), obs_dtype=torch.uint8, stack=4, n_step=3, gamma=0.99,
    reward_clip=True, life_loss_terminal=True, priority_exponent=0.5, seed=1, device=torch.device("cpu"),
)
print(resident_bytes() - before, ring.nbytes)
"""

# trains as `fastdqn train` does, but ends with exit code 99 as soon as a pool is asked for
NO_POOL = """
import sys, envpool
envpool.make = lambda *args, **options: sys.exit(99)
from fastdqn.cli import main
sys.exit(main(sys.argv[1:]))
"""


def page_faults(mode: str) -> int:
    # glibc adapts its threshold to what it has seen; a fixed one makes every tensor of 1 MB a mapping of its own
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") * 10 < page_faults("as it is")


def test_every_page_of_a_ring_is_touched_when_it_is_made() -> None:
    # in a process of its own: here the ring may lie in memory that an earlier test freed and that never went back
    command = [sys.executable, "-c", RING]
    held, ring = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert ring > 140 * MB
    assert held >= ring - 2 * MB  # small tensors may lie in memory freed before


# what is counted


def table_of(config: Config) -> dict[str, int]:
    return {need.part: need.nbytes for need in parts.needs(config.resolved()[0], CPU)}


def test_the_parts_of_a_run_by_hand() -> None:
    found = table_of(load_preset("cartpole"))
    # 4 -> 128 -> 128 -> 2
    parameters = (4 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 2
    assert found["ring"] == 200_000 * (4 * 4 + 8) + 16 * 8
    assert found["model"] == parameters * 4 * 5  # weights, target, gradients, two moments
    assert found["saving"] == parameters * 4 * 5  # weights, target, two moments, and the chunk that is being written
    assert found["games"] == 16 * (preflight.TASK_BYTES + preflight.SCREENS * 4 * 4)
    assert found["staging"] == 8 * (4 * 4 + 16)
    outputs = (4 * 128 + 2) * 4  # two layers with their ReLUs, and two values
    assert found["activations"] == 128 * (7 * 16 + 3 * outputs) // 2


def test_a_million_atari_frames_are_seven_gigabytes() -> None:
    assert required_bytes(1_000_000, 64, row_bytes((84, 84), torch.uint8)) == 1_000_000 * (7_056 + 8) + 64 * 8


def test_a_forward_pass_is_counted_without_memory_or_arithmetic() -> None:
    with torch.device("meta"):
        network = QNetwork((4, 84, 84), 4, encoder="impala", impala_width=2, head="iqn", spectral_norm=True)
    before = resident_bytes()
    assert preflight.forward_bytes(network, (4, 84, 84)) > 4 * MB
    assert resident_bytes() - before < 100 * MB
    assert all(param.is_meta for param in network.parameters())


def test_larger_batches_networks_and_pools_need_more_each_in_its_own_part() -> None:
    config = load_preset("fast")
    plain = table_of(config)
    cases: list[tuple[dict, set[str]]] = [
        ({"batch_size": 512}, {"activations"}),
        ({"num_envs": 128}, {"games", "staging", "ring"}),  # the ring has a cursor for each env
        ({"replay_capacity": 2_000_000}, {"ring"}),
        ({"prioritized": True}, {"ring"}),
        ({"hidden_size": 1024}, {"model", "saving", "activations"}),
        ({"optimizer": "rmsprop"}, {"model", "saving"}),
        ({"acting_ema": 0.995}, {"model", "saving"}),
        ({"eval_period_frames": 1_000_000}, {"evaluation"}),
        ({"checkpoint_replay": "full"}, {"saving"}),
    ]
    for changes, expected in cases:
        changed = table_of(Config(**changes))
        assert {part for part in changed if changed[part] != plain.get(part)} == expected, changes
    assert table_of(replace(config, compile=False)).keys() == plain.keys() - {"compilers"}


def test_on_cuda_the_device_holds_ring_model_activations_and_graphs_and_the_host_the_rest() -> None:
    table = [Need("ring", 1, True), Need("graphs", 20, True), Need("staging", 300), Need("games", 4000)]
    assert preflight.total(table, on_device=True, cuda=True) == 21
    assert preflight.total(table, on_device=False, cuda=True) == 4300
    assert preflight.total(table, on_device=True, cuda=False) == 4321
    config = Config().resolved()[0]
    screen = parts.make_screen(config, CPU)
    network = parts.meta_network(config, screen, torch.float32)
    cuda = preflight.needs_of(config, torch.device("cuda"), screen, network, compile=True)
    assert {need.part for need in cuda if need.on_device} == {"ring", "model", "activations", "graphs"}
    assert {need.part for need in cuda if not need.on_device} == {"staging", "games", "saving", "compile"}


def test_the_parts_are_said_in_one_line_largest_first() -> None:
    table = [Need("games", 63 * MB), Need("ring", 7_064_000_512), Need("staging", 300_000)]
    assert preflight.describe(table) == "ring 7.06 GB, games 63 MB, staging 0.3 MB"


@pytest.mark.parametrize("task", atari.VECTOR_TASKS)
def test_the_size_of_a_vector_is_known_before_its_pool_is_built(task: str) -> None:
    envs = VectorEnv(task, num_envs=1, seed=1, num_threads=1)
    assert envs.obs_shape == (atari.vector_size(task),)
    envs.close()


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The preflight's word on a machine that has `free` bytes."""

    def checked(free: int, *, ranks: int = 1, local_ranks: int = 1, **changes: Any) -> str:
        monkeypatch.setattr("fastdqn.machine.preflight.free_bytes", lambda device, ranks=1: free // ranks)
        config = Config(compile=False, **changes).resolved()[0]
        table = parts.needs(config.share(ranks), CPU)
        return preflight.check(config, CPU, parts.make_screen(config, CPU), table, Ranks(0, ranks, 0, local_ranks))

    return checked


def test_a_capacity_that_does_not_fit_is_refused_with_the_largest_that_does(check: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"replay_capacity=10000000: needs 70\.64 GB on cpu, .* GB are free") as error:
        check(8_000 * MB, replay_capacity=10_000_000)
    largest = int(str(error.value).split("--replay-capacity ")[1])
    assert largest % 64 == 0 and "8.00 GB were free on cpu" in check(8_000 * MB, replay_capacity=largest)
    with pytest.raises(UsageError, match=f"--replay-capacity {largest}$"):
        check(8_000 * MB, replay_capacity=largest + 64)


def test_where_no_ring_fits_nothing_useless_is_suggested(check: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"replay_capacity=50000: .* no ring fits: end other programs"):
        check(100 * MB, replay_capacity=50_000, learning_starts=40_000, num_envs=1, batch_size=1)


def test_the_ranks_of_a_machine_share_its_free_memory() -> None:
    free = free_bytes(CPU)
    assert free_bytes(CPU, ranks=4) == pytest.approx(free / 4, rel=0.05)  # others allocate meanwhile


@pytest.mark.parametrize("local_ranks", [1, 2])  # two machines, or one
def test_of_several_ranks_the_whole_jobs_capacity_is_named_and_the_largest_one_of_it_fits(
    local_ranks: int, check: Callable[..., str]
) -> None:
    job = {"free": 4_000 * MB, "ranks": 2, "local_ranks": local_ranks}
    with pytest.raises(UsageError, match=r"^replay_capacity=1500001: needs 5\.30 GB on cpu, ") as refused:
        check(replay_capacity=1_500_001, **job)
    assert ", for each of 2 ranks; the largest that fits is --replay-capacity " in str(refused.value)
    fits = int(str(refused.value).split("--replay-capacity ")[1])
    check(replay_capacity=fits, **job)
    with pytest.raises(UsageError):
        check(replay_capacity=fits + 64, **job)


@pytest.mark.parametrize(
    ("changes", "blamed"),
    [
        ({"batch_size": 60_000}, r"batch_size=60000: activations need"),
        ({"num_envs": 4_096}, r"num_envs=4096: games need"),
        ({"num_envs": 1_024, "batch_size": 32, "encoder": "impala"}, r"num_envs=1024: activations need"),
    ],
)
def test_what_does_not_fit_without_any_ring_is_blamed_on_its_own_field(
    changes: dict[str, Any], blamed: str, check: Callable[..., str]
) -> None:
    with pytest.raises(UsageError, match=f"^{blamed} .* are free on cpu; lower --"):
        check(1_000 * MB, precision="fp32", replay_capacity=50_000, learning_starts=40_000, **changes)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_host_too_small_for_a_run_on_a_gpu_is_refused(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 80_000 * MB, "cpu": 4_000 * MB}
    monkeypatch.setattr("fastdqn.machine.preflight.free_bytes", lambda device, ranks=1: free[device.type] // ranks)
    cuda, config = torch.device("cuda"), Config().resolved()[0]
    job = config, cuda, parts.make_screen(config, CPU)
    table = [Need("ring", 1, True), Need("model", 1, True), Need("games", 4_000 * MB // ranks)]
    assert "80.00 GB were free on cuda" in preflight.check(*job, table, Ranks(0, 1, 0, 1))
    table.append(Need("staging", 1))
    each = ", for each of 2 ranks" * (ranks == 2)
    with pytest.raises(
        UsageError, match=rf"num_envs=64: .* GB of host memory, .* GB are free{each}; end other programs"
    ):
        preflight.check(*job, table, Ranks(0, ranks, 0, ranks))


# control groups

V1_MOUNT = "35 31 0:32 {seen} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "30 23 0:26 {seen} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "23 29 0:22 / /proc rw shared:12 - proc proc rw\n36 31 0:33 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


def tree(root: Path, cgroup: str, mounts: str, groups: dict[str, tuple[str, int, int]]) -> Path:
    """Files as the kernel writes them. `groups`: folder -> limit, use, inactive page cache."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(OTHERS + mounts)
    for name, (limit, used, cache) in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        if name.split("/")[0] == "memory":
            (folder / "memory.limit_in_bytes").write_text(limit + "\n")
            (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"cache 9\ninactive_file 1\ntotal_inactive_file {cache}\n")
        else:
            (folder / "memory.max").write_text(limit + "\n")
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon 7\nfile 9\ninactive_file {cache}\nactive_file 5\n")
    return root


UNLIMITED = "9223372036854771712"
# one mount for two controllers, as most machines of version 1 have it
V1_BOTH = "37 31 0:34 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V1_LINES = "9:name=systemd:/\n4:memory:/batch/job-7\n1:cpu:/batch\n"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "groups", "headroom"),
    [
        pytest.param("0::/a/b\n", V2_MOUNT.format(seen="/"), {"a": ("900", 500, 0), "a/b": ("max", 300, 0)}, 400,
                     id="the limit of a group above"),
        pytest.param("0::/a/b\n", V2_MOUNT.format(seen="/"), {"a": ("900", 500, 0), "a/b": ("350", 300, 0)}, 50,
                     id="the tightest counts"),
        pytest.param("0::/a\n", V2_MOUNT.format(seen="/"), {"a": ("900", 500, 0), "b": ("10", 5, 0)}, 400,
                     id="a sibling's limit does not"),
        pytest.param("0::/a\n", V2_MOUNT.format(seen="/"), {"a": ("900", 800, 350)}, 450,
                     id="inactive page cache is free"),
        pytest.param("0::/a\n", V2_MOUNT.format(seen="/"), {"a": ("900", 950, 0)}, 0, id="over the limit"),
        pytest.param("0::/a\n", V2_MOUNT.format(seen="/"), {"a": ("max", 500, 0)}, None, id="no limit"),
        pytest.param("0::/\n", V2_MOUNT.format(seen="/"), {".": ("900", 500, 0)}, 400, id="a container's own root"),
        pytest.param(V1_LINES, V1_MOUNT.format(seen="/"),
                     {"memory": (UNLIMITED, 99, 0), "memory/batch": ("800", 500, 20),
                      "memory/batch/job-7": (UNLIMITED, 50, 0)}, 320, id="version 1, nested"),
        pytest.param(V1_LINES, V1_MOUNT.format(seen="/batch/job-7"), {"memory": ("700", 500, 0)}, 200,
                     id="version 1 in a container that is told the host's name"),
        pytest.param(V1_LINES, V1_MOUNT.format(seen="/batch"),
                     {"memory": ("700", 500, 0), "memory/job-7": ("600", 500, 0)}, 100,
                     id="version 1, of which a container sees a part"),
        pytest.param(V1_LINES, V1_MOUNT.format(seen="/batch/job"), {"memory/-7": ("10", 5, 0)}, None,
                     id="a name that only begins alike"),
        pytest.param(V1_LINES + "0::/x\n", V1_MOUNT.format(seen="/") + V2_MOUNT.format(seen="/").replace(
                     "/sys/fs/cgroup ", "/sys/fs/cgroup/unified "), {"memory/batch": ("800", 500, 0)}, 300,
                     id="both versions, memory in the first"),
        pytest.param("", "", {}, None, id="no control groups"),
    ],
)  # fmt: skip
def test_the_headroom_of_control_groups(
    cgroup: str, mounts: str, groups: dict[str, tuple[str, int, int]], headroom: int | None, tmp_path: Path
) -> None:
    assert memory_headroom(tree(tmp_path, cgroup, mounts, groups)) == headroom


def test_a_machine_without_proc_has_no_limit_to_be_seen(tmp_path: Path) -> None:
    assert memory_headroom(tmp_path) is None
    assert core_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "limit"),
    [
        ("0::/a/b\n", V2_MOUNT.format(seen="/"), {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b\n", V2_MOUNT.format(seen="/"), {"a/cpu.max": "300000 100000", "a/b/cpu.max": "50000 25000"}, 2.0),
        ("0::/\n", V2_MOUNT.format(seen="/"), {"cpu.max": "max 100000"}, None),
        (V1_LINES, "", {"cpu/batch/cpu.cfs_quota_us": "400000", "cpu/batch/cpu.cfs_period_us": "100000"}, 4.0),
        (
            "3:cpu,cpuacct:/batch\n",
            V1_BOTH,
            {"cpu,cpuacct/batch/cpu.cfs_quota_us": "400000", "cpu,cpuacct/batch/cpu.cfs_period_us": "200000"},
            2.0,
        ),
        (V1_LINES, "", {"cpu/batch/cpu.cfs_quota_us": "-1", "cpu/batch/cpu.cfs_period_us": "100000"}, None),
        (V1_LINES, "", {"cpu/other/cpu.cfs_quota_us": "400000", "cpu/other/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_tightest_limit_on_cores_counts(
    cgroup: str, mounts: str, files: dict[str, str], limit: float | None, tmp_path: Path
) -> None:
    root = tree(tmp_path, cgroup, mounts, {})
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text + "\n")
    assert core_limit(root) == limit


def test_as_many_threads_are_planned_as_a_real_control_group_allows_cores() -> None:
    own = [folder for folder, version in _groups(Path("/"), "cpu") if (folder / version.cores[0]).exists()]
    if not own:
        pytest.skip("no processor control group is to be seen")
    group = own[-1] / f"fastdqn-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        v1 = (group / "cpu.cfs_quota_us").exists()
        (group / ("cpu.cfs_quota_us" if v1 else "cpu.max")).write_text("150000" if v1 else "150000 100000")
        program = "from fastdqn.machine import hardware; print(hardware.core_limit(), hardware.cores())"
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), sys.executable, "-c", program]
        assert subprocess.run(enter, capture_output=True, text=True, timeout=300).stdout == "1.5 1\n"
    finally:
        group.rmdir()


class Group:
    """A real memory control group inside this process's own, version 1 or 2."""

    def __init__(self, above: Path, name: str) -> None:
        self.path = above / name
        self.path.mkdir()
        names = [name for name in ("memory.limit_in_bytes", "memory.max") if (self.path / name).exists()]
        self._limit = self.path / names[0] if names else None

    @property
    def limits(self) -> bool:
        return self._limit is not None

    def limit(self, nbytes: int) -> None:
        assert self._limit is not None
        self._limit.write_text(str(nbytes))

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess:
        """A process that is in the group from its first instruction."""
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.path), *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def group() -> Iterator[Group]:
    own = [folder for folder, version in _groups(Path("/"), "memory") if (folder / version.limit).exists()]
    if not own:
        pytest.skip("no memory control group is to be seen")
    try:
        made = Group(own[-1], f"fastdqn-test-{os.getpid()}")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not made.limits:
            pytest.skip("the memory controller is not passed on to new groups here")
        yield made
    finally:
        for folder in sorted(made.path.rglob("*"), reverse=True):
            if folder.is_dir():
                folder.rmdir()
        made.path.rmdir()


def test_the_limit_of_a_real_control_group_is_seen_from_a_group_inside_it(group: Group) -> None:
    group.limit(300 * MB)
    inner = Group(group.path, "inner")
    if inner.limits:  # version 2 passes the controller on only where it was told to
        inner.limit(600 * MB)
    program = "from fastdqn.machine.control_groups import memory_headroom; print(memory_headroom())"
    done = inner.run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert 200 * MB < int(done.stdout) < 300 * MB  # the interpreter itself takes some
    outside = memory_headroom()
    assert outside is None or outside > 300 * MB


def test_a_run_that_the_control_group_would_kill_is_refused_before_a_pool_is_built(group: Group) -> None:
    group.limit(1_500 * MB)
    flags = ["train", "--device", "cpu", "--num-envs", "64", "--replay-capacity", "1M"]
    done = group.run(sys.executable, "-c", NO_POOL, *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: replay_capacity=1000000: needs 7.06 GB on cpu, ")
    assert done.stderr.count("\n") == 1
    found = re.search(
        r"free beside (0\.\d+) GB for the rest; the largest that fits is --replay-capacity (\d+)$", done.stderr
    )
    assert found, done.stderr
    rest, largest = float(found[1]) * 1e9, int(found[2])
    assert largest % 64 == 0 and rest > 300 * MB and 0 < largest * 7_064 < 1_500 * MB - rest


# long


@pytest.mark.long
def test_the_capacity_that_a_refusal_suggests_then_runs_within_the_limit(group: Group, tmp_path: Path) -> None:
    group.limit(1_500 * MB)
    train = [sys.executable, "-m", "fastdqn", "train", "--device", "cpu", "--num-envs", "64", "--replay-capacity"]
    largest = group.run(*train, "1M").stderr.split("--replay-capacity ")[1].strip()
    short = ["--learning-starts", "2k", "--total-frames", "12k", "--ui", "quiet", "--run-dir", str(tmp_path / "run")]
    # a few rows less: what else the group holds moves between two readings
    done = group.run(*train, str(int(largest) * 99 // 100 // 64 * 64), *short, timeout=1_200)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", ["breakout", "cartpole"])
def test_what_is_said_before_is_at_most_fifteen_percent_above_what_a_run_takes(name: str) -> None:
    from benchmarks.memory import MARGIN, in_process

    run = in_process("run", name)
    print(f"{name}: predicted {size(run['predicted'])}, measured {size(run['measured'])}")
    assert run["updates"] > 50
    assert run["measured"] <= run["predicted"] <= (1 + MARGIN) * run["measured"]
