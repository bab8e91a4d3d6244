"""What this machine computes on: device, precision, processors."""

import os

import torch

from features.errors import HoarfrostError


def choose_device(asked: str) -> str:
    """Turn "auto" into a device that is there; refuse one that is not."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise HoarfrostError("--device cuda: torch finds no CUDA device here. Pass --device cpu or auto.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise HoarfrostError("--device mps: torch finds no Apple GPU here. Pass --device cpu or auto.")
    return asked


def choose_precision(asked: str, device: str) -> str:
    """Turn "auto" into the precision that is fast on the device."""
    if asked == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return asked


def usable_cpus() -> int:
    """Count the CPUs that this process may use (its affinity), not those of the host."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
