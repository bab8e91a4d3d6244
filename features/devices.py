"""What this machine computes on: devices, processors, memory."""

import logging
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from hoarfrost.features.errors import HoarfrostError

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")

MOST_ON_CPU = 64  # images at once: a CPU gains nothing from more, and must commit, and stop, within seconds
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

logger = logging.getLogger(__name__)
_setting_threads = threading.Lock()


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


def n_gpus() -> int:
    """Count the CUDA devices of this machine."""
    return torch.cuda.device_count()


def default_batch_size(device: str) -> int:
    """Give the images in a batch: many where a GPU computes on all at once."""
    return 32 if device == "cpu" else 256


def choose_batch_size(asked: int | None, device: str) -> int:
    """Give the images that are taken at once: as asked, but on a CPU, whose results do not depend on it, not too many."""
    batch_size = asked or default_batch_size(device)
    return min(batch_size, MOST_ON_CPU) if device == "cpu" else batch_size


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Make an empty tensor in the host's memory: pinned, which a GPU copies from by itself, as long as there is any."""
    if pinned:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        _say_unpinned()
    return torch.empty(shape, dtype=dtype)


@cache  # once is enough
def _say_unpinned() -> None:
    logger.warning("no more memory can be pinned (see ulimit -l); going on without, which is only slower")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a GPU ran out of memory: torch has an error of its own for that, the libraries below it have not."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def has_amx() -> bool:
    """Tell whether the CPU has matrix units for bfloat16."""
    return _has("amx_bf16")


def has_avx512_bf16() -> bool:
    """Return whether the CPU has vector units for bfloat16, which are faster than float32's on some processors only."""
    return _has("avx512_bf16")


def has_vnni() -> bool:
    """Tell whether the CPU multiplies 8-bit integers natively."""
    return _has("avx512_vnni") or _has("avx_vnni")


def _has(flag: str) -> bool:
    """Tell whether Linux lists a feature of the processor."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(flag in line.split() for line in lines if line.startswith("flags"))


@contextmanager
def threads_of_its_own() -> Iterator[int]:
    """Let torch compute on the CPUs that this process may use, as a number of threads; afterwards as before."""
    with _setting_threads:
        before = torch.get_num_threads()
        n_threads = min(before, usable_cpus())  # torch counts the host's; a container may have fewer
        torch.set_num_threads(n_threads)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(before)


def compute_on_one_thread(n_elsewhere: int) -> None:
    """Let this thread compute on one core, and threads to come on `n_elsewhere`.

    What a thread sets is the default of later threads too, so another thread that ends at once sets it back.
    """
    with _setting_threads:
        torch.get_num_threads()  # else the first layer would take the default
        torch.set_num_threads(1)
        keeper = threading.Thread(target=torch.set_num_threads, args=(n_elsewhere,))
        keeper.start()
        keeper.join()


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
