"""The processors and the memory that this process may use. Loads no torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def has_amx() -> bool:
    """Return whether the CPU has matrix units for bfloat16."""
    return _has("amx_bf16")


def has_avx512_bf16() -> bool:
    """Return whether the CPU has vector units for bfloat16, which are faster than float32's on some processors only."""
    return _has("avx512_bf16")


def has_vnni() -> bool:
    """Return whether the CPU multiplies 8-bit integers natively."""
    return _has("avx512_vnni", "avx_vnni")


def has_avx2() -> bool:
    """Return whether the CPU has vectors of 256 bits for integers."""
    return _has("avx2")


def _has(*features: str) -> bool:
    """Return whether Linux lists one of these features of the processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(not set(features).isdisjoint(line.split()) for line in lines if line.startswith("flags"))


def usable_cpus() -> int:
    """Return how many CPUs this process may use, by its affinity and its cgroups' quotas; the host may have more."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([n_cpus, *map(_quota, _own_cgroups("cpu"))])))


def _own_cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, and of those above them, for one controller."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(":", 2)  # a number, controllers, a path
        if len(fields) < 3 or (fields[1] and controller not in fields[1].split(",")):
            continue
        mount = CGROUPS / controller if fields[1] else CGROUPS  # version 1 mounts each controller, version 2 one tree
        group = mount / fields[2].lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _quota(folder: Path) -> float:
    """Read a cgroup's limit, of version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`), as a number of CPUs; infinity if none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return math.inf if quota in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def usable_memory() -> float:
    """Return how many bytes this process may use: the system's memory, within its cgroups' limits; infinity if unknown."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        total = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemTotal:"))
    except (OSError, ValueError, StopIteration):
        total = math.inf
    return min([total, *map(_memory_limit, _own_cgroups("memory"))])


def _memory_limit(folder: Path) -> float:
    """Read a cgroup's limit, of version 2 or 1, in bytes; infinity if none."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    try:
        limit = (folder / name).read_text(encoding="ascii").strip()
        return math.inf if limit == "max" else int(limit)
    except (OSError, ValueError):
        return math.inf
