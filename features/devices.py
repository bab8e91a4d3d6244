"""What this machine computes on: device, precision, processors, memory."""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from features.errors import HoarfrostError

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def choose_device(asked: str, precision: str = "auto") -> str:
    """Turn "auto" into a device that is there and computes in the precision; refuse one that is not or does not."""
    if precision.startswith("int8"):
        if asked not in {"auto", "cpu"}:
            raise HoarfrostError(f"--precision int8 runs on the CPU, not on {asked}. Pass --device cpu with it.")
        return "cpu"
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise HoarfrostError("--device cuda: torch finds no CUDA device here. Pass --device cpu or auto.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise HoarfrostError("--device mps: torch finds no Apple GPU here. Pass --device cpu or auto.")
    return asked


def choose_precision(asked: str, device: str) -> str:
    """Turn "auto" into the precision that is fast on the device: bfloat16 where it is multiplied natively, else float32."""
    if asked != "auto":
        return asked
    if device == "cuda":
        return "bfloat16"
    if device == "cpu" and (_has("amx_bf16") or (_has("avx512_bf16") and _bfloat16_is_faster())):
        return "bfloat16"
    return "float32"


def default_batch_size(device: str) -> int:
    """Give the images in a batch: many where a GPU computes on all at once."""
    return 32 if device == "cpu" else 256


def _has(flag: str) -> bool:
    """Tell whether Linux lists a feature of the processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(flag in line.split() for line in lines if line.startswith("flags"))


def _bfloat16_is_faster() -> bool:
    """Time a typical layer in both: AVX-512 BF16 is twice as fast on some processors, and slower on others."""
    return _layer_seconds(torch.bfloat16) < _layer_seconds(torch.float32)


def _layer_seconds(dtype: torch.dtype) -> float:
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.zeros((8, 256, 14, 14), dtype=dtype).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(5):
            started = time.perf_counter()
            layer(x)
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def usable_cpus() -> int:
    """Count the CPUs that this process may use (its affinity, its cgroup's quota), not those of the host."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(n_cpus, _cgroup_quota())))


def _cgroup_quota() -> float:
    """Give how many CPUs' time the cgroup, or one above it, may use; infinity where nothing limits it."""
    return min([math.inf, *(_quota(folder) for folder in _own_cgroups("cpu"))])


def _own_cgroups(controller: str) -> Iterator[Path]:
    """Give the folders of the cgroups that this process is in, and of those above them, for one controller."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if not separator or (controllers and controller not in controllers.split(",")):
            continue
        mount = CGROUPS / controller if controllers else CGROUPS  # version 1 mounts each controller, version 2 one tree
        group = mount / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _quota(folder: Path) -> float:
    """Read one cgroup's limit, of version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`), as a number of CPUs."""
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
    """Give how many bytes this process may use: what the system has, within its cgroup's limit; infinity if unknown."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        total = next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemTotal:"))
    except (OSError, ValueError, StopIteration):
        total = math.inf
    return min([total, *(_memory_limit(folder) for folder in _own_cgroups("memory"))])


def _memory_limit(folder: Path) -> float:
    """Read one cgroup's limit, of version 2 or 1, in bytes."""
    name = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
    try:
        limit = (folder / name).read_text(encoding="ascii").strip()
        return math.inf if limit == "max" else int(limit)
    except (OSError, ValueError):
        return math.inf
