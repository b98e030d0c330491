"""What the control groups of this process allow, memory and cores: what a container, a batch system or systemd set.

A process is in one group of the tree, and the limits of that group and of every group above it hold at once:

    /proc/self/cgroup       4:memory:/batch/job-7        version 1; version 2 has one line, 0::/batch/job-7
    /proc/self/mountinfo    where that tree can be seen, and from which of its groups on (a container sees a part)

    /sys/fs/cgroup/memory                 no limit
    /sys/fs/cgroup/memory/batch           8 GB, of which 5 are used    3 GB left
    /sys/fs/cgroup/memory/batch/job-7     4 GB, of which 2 are used    2 GB left: this is the answer

Of memory, use counts the page cache, which the kernel gives up before it kills. Its inactive part is taken off, as `docker stats`
and the kubelet do; the active part is left in, because giving that up costs reading it again.
"""

from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Version(NamedTuple):
    """The names of a version's files, and of the inactive page cache of a group and all below it in memory.stat."""

    limit: str
    used: str
    inactive: str
    cores: tuple[str, ...]  # microseconds of processor time, and of which period


_V1 = _Version(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    ("cpu.cfs_quota_us", "cpu.cfs_period_us"),
)  # fmt: skip
_V2 = _Version("memory.max", "memory.current", "inactive_file", ("cpu.max",))


def memory_headroom(root: Path = Path("/")) -> int | None:
    """Bytes until the tightest limit on this process; None where none is set, or none is to be seen.

    `root` is where `proc/self` and the mounted trees are looked for.
    """
    left = [_headroom(group, version) for group, version in _groups(root, "memory")]
    return min((value for value in left if value is not None), default=None)


def core_limit(root: Path = Path("/")) -> float | None:
    """Cores whose time all threads together may take (docker --cpus, a pod's limit); None and `root` as above."""
    allowed = [_cores(group, version) for group, version in _groups(root, "cpu")]
    return min((value for value in allowed if value is not None), default=None)


def _groups(root: Path, controller: str) -> list[tuple[Path, _Version]]:
    """The folders of this process's own groups of a controller and of all above them, as far as they can be seen."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return []
    own: dict[str, PurePosixPath] = {}
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            own["cgroup2" if number == "0" else "cgroup"] = PurePosixPath(path)
    found: list[tuple[Path, _Version]] = []
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in own or (kind == "cgroup" and controller not in options.split(",")):
            continue
        seen_from, mounted_at = before.split(" ")[3:5]
        top = root / mounted_at.lstrip("/")
        # a container may be told its group as the host names it, and see that group as the top
        inside = own[kind].relative_to(seen_from).parts if own[kind].is_relative_to(seen_from) else ()
        version = _V2 if kind == "cgroup2" else _V1
        found += [(top.joinpath(*inside[:depth]), version) for depth in range(len(inside) + 1)]
    return found


def _headroom(group: Path, version: _Version) -> int | None:
    """Limit less use; None: no limit. Version 1 writes "no limit" as a number beyond any memory."""
    try:
        limit = (group / version.limit).read_text().strip()
        if limit == "max" or int(limit) >= 1 << 62:
            return None
        used = int((group / version.used).read_text())
    except (OSError, ValueError):
        return None
    return max(int(limit) - used + _inactive(group, version), 0)


def _inactive(group: Path, version: _Version) -> int:
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(stat.get(version.inactive, 0))
    except (OSError, ValueError):
        return 0  # then all of the cache counts as used: too strict rather than too lax


def _cores(group: Path, version: _Version) -> float | None:
    """Quota by period. Without a limit version 2 writes "max", version 1 writes -1."""
    try:
        quota, period = " ".join((group / file).read_text() for file in version.cores).split()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
