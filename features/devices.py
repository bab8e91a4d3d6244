"""What torch computes on: devices, and threads of the processors."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.processors import usable_cpus

MOST_ON_CPU = 64  # images at once: a CPU gains nothing from more, and must commit, and stop, within seconds
MAX_REASON = 150  # characters of torch's message
NO_THREAD = "can't start new thread"  # Python's words
OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

logger = logging.getLogger(__name__)
_setting_threads = threading.Lock()


def choose_device(asked: str, precision: str = "auto") -> str:
    """Return the device asked for, or the best one for "auto"; refuse one that is missing or unable to use the precision."""
    if precision.startswith("int8"):
        if asked not in {"auto", "cpu"}:
            raise HoarfrostError(f"--precision int8 runs on the CPU, not on {asked}. Pass --device cpu with it.")
        return "cpu"
    if asked == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        if gpu_failure():
            _warn_of_gpu(gpu_failure())
            return "cpu"
        return "cuda"
    if asked == "cuda":
        if not torch.cuda.is_available():
            raise HoarfrostError(
                "--device cuda: torch finds no CUDA device on this machine. Pass --device cpu or auto."
            )
        if gpu_failure():
            raise HoarfrostError(f"--device cuda: the GPU cannot be used ({gpu_failure()}). Pass --device cpu or auto.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise HoarfrostError("--device mps: torch finds no Apple GPU on this machine. Pass --device cpu or auto.")
    return asked


@cache  # once is enough
def gpu_failure() -> str:
    """Return why the GPU does not run a small kernel: torch has none for it, or its memory is taken; "" if it does."""
    try:
        works = float(torch.ones(2, device="cuda").sum()) == 2
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0][:MAX_REASON] or type(error).__name__
    return "" if works else "1 + 1 is not 2 there"


@cache
def _warn_of_gpu(reason: str) -> None:
    logger.warning("The GPU cannot be used (%s). Continuing on the CPU.", reason)


@contextmanager
def enough_memory(device: torch.device | str, what: str) -> Iterator[None]:
    """Raise HoarfrostError, with the way out, where a GPU's memory is not enough for something."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise HoarfrostError(
            f"{device}: not enough memory for {what}. Free memory on the GPU, or pass --device cpu."
        ) from error


@contextmanager
def enough_threads() -> Iterator[None]:
    """Raise HoarfrostError, with the way out, where the system lets this process start no more threads."""
    try:
        yield
    except RuntimeError as error:
        if NO_THREAD not in str(error):
            raise
        raise HoarfrostError(
            "No more threads can be started. Allow more processes (see ulimit -u), free memory, or use fewer --workers. "
            "Then run the same command again."
        ) from error


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Let a GPU's convolutions compute float32 in float32, not in TF32; restore the caller's setting afterwards.

    By torch's newer interface: the older one raises errors in a program that uses the newer, and resets its `benchmark`.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:  # "none" follows the setting for all kinds of layers, as before
        cudnn.conv.fp32_precision = "none" if before == cudnn.fp32_precision else before


def is_gpu(device: torch.device) -> bool:
    """Return whether kernels are started on a device one by one, which may take longer than they do: CUDA's."""
    return device.type == "cuda"


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Capture the kernels of some work as a CUDA graph, without running them; return what runs them, on the same memory.

    Raise RuntimeError if the work cannot be captured: its own error, if it raised one. Nothing is being captured then, and
    the stream is that of before.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    pool = torch.cuda.graph_pool_handle()
    capture = torch.cuda.graph(graph, pool, capture_error_mode="thread_local")  # other threads may pin memory meanwhile
    try:
        capture.__enter__()
        try:
            work()
        except BaseException:
            with suppress(RuntimeError):  # it says that the capture failed, in place of why
                capture.__exit__(*sys.exc_info())
            raise
        capture.__exit__(None, None, None)
    except BaseException:
        _end_capture(graph, pool, stream)
        raise
    return graph.replay


def _end_capture(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> None:
    """Undo what a capture that failed may leave, depending on torch's version: its stream, and an allocator that waits.

    As long as it takes the capture to be under way, the allocator frees nothing that another stream has used.
    """
    torch.cuda.set_stream(stream)
    with suppress(RuntimeError):
        graph.reset()
    with suppress(RuntimeError, AttributeError):  # newer versions have ended it
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)


def n_gpus() -> int:
    """Return the number of CUDA devices of this machine."""
    return torch.cuda.device_count()


def choose_batch_size(asked: int | None, device: str) -> int:
    """Return the number of images in a batch: as asked, but limited on a CPU, whose results do not depend on it."""
    return min(asked or 32, MOST_ON_CPU) if device == "cpu" else asked or 256  # a GPU computes on all of them at once


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Return an empty tensor in the host's memory: pinned, so that a GPU copies from it by itself, if possible."""
    if pinned:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        warn_unpinned()
    return torch.empty(shape, dtype=dtype)


@cache  # once is enough
def warn_unpinned() -> None:
    """Warn once that memory could not be pinned."""
    logger.warning("No more memory can be pinned (see ulimit -l). Continuing without pinned memory, only slower.")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a GPU ran out of memory: torch has a class for this error, the libraries below it only a text."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def threads_on_usable_cpus() -> Iterator[int]:
    """Let torch compute on the CPUs that this process may use, and yield their number; restore the setting afterwards."""
    with _setting_threads:
        before = torch.get_num_threads()
        n_threads = min(before, usable_cpus())  # torch counts the host's; a container may have fewer
        torch.set_num_threads(n_threads)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread(*, only_if: bool = True) -> Iterator[None]:
    """Let torch, NumPy and SciPy compute on one core, if a condition holds; restore the setting afterwards.

    Small products are slower on several: threads wait for one another, and many times as long where something else uses
    a core.
    """
    if not only_if:
        yield
        return
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def compute_on_one_thread(n_elsewhere: int) -> None:
    """Let this thread compute on one core, and later threads on `n_elsewhere`."""
    with _setting_threads:
        torch.get_num_threads()  # else the first layer would take the default
        torch.set_num_threads(1)
        # A thread's setting is the default of later threads too: a short-lived thread restores that.
        restorer = threading.Thread(target=torch.set_num_threads, args=(n_elsewhere,))
        with suppress(RuntimeError):  # no more threads: later ones compute on one core, too
            restorer.start()
            restorer.join()
