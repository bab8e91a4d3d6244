"""Images as hospitals have them: 10,000 of which 300 are bad in 15 ways, against as many clean ones."""

import json
import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from tests.benchmarks import image_sets
from tests.benchmarks.measurement import Measurement
from tests.support.bad_images import BAD

N_IMAGES, N_BAD = 10_000, 300
ROUNDS = 3
SIZE = 192


def bad(folder: Path) -> list[Measurement]:
    """Extract both sets by a backbone that computes nothing, by turns; compare reasons and speeds."""
    clean = image_sets.write_images(folder / "clean", N_IMAGES, SIZE, suffix=".png", colour=True)
    mixed, reasons = _write_mixed(folder / "mixed", clean)
    speeds: dict[Path, list[float]] = {clean: [], mixed: []}
    for i in range(ROUNDS):
        for data, found in speeds.items():
            summary = _extract(data, folder / f"{data.name}{i}.h5")
            found.append(summary["images"] / summary["seconds"])
    told = dict(summary["errors"])
    n_right = sum(re.match(reason, told.get(path, "")) is not None for path, reason in reasons.items())
    fast, slow = (sorted(speeds[data])[ROUNDS // 2] for data in (clean, mixed))
    return [
        Measurement(
            f"{N_IMAGES:,} images of which {N_BAD} are bad in {len(BAD)} ways, by a backbone that computes nothing",
            f"{summary['embedded']:,} embedded, {summary['failed']} listed, {n_right} of them with the right reason; "
            f"{slow:.0f} against {fast:.0f} images/s of a clean set ({slow / fast:.2f})",
            f"{N_IMAGES - N_BAD:,}, {N_BAD}, {N_BAD}; within 10%",
            {"embedded": summary["embedded"], "failed": summary["failed"], "right": n_right, "mixed": slow, "clean": fast},
        )
    ]  # fmt: skip


def _write_mixed(folder: Path, clean: Path) -> tuple[Path, dict[str, str]]:
    """Link to clean images, put bad ones among them; give the reason that each of these is to have."""
    for label in "ab":
        (folder / label).mkdir(parents=True)
    for path in islice(sorted(clean.rglob("*.png")), N_IMAGES - N_BAD):
        os.link(path, folder / path.relative_to(clean))
    reasons = {}
    for i in range(N_BAD):
        name, (write, reason) = list(BAD.items())[i % len(BAD)]
        path = folder / "ab"[i % 2] / f"{i * (N_IMAGES // N_BAD):06d}-{name}"
        write(path)
        reasons[str(path.relative_to(folder))] = reason
    return folder, reasons


def _extract(data: Path, cache: Path) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tests.support.standin", "0", "extract", str(data), "--cache", str(cache), "--weights",
        "random:0", "--device", "cpu", "--precision", "float32", "--json",
    ]  # fmt: skip
    summary: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return summary


MEASUREMENTS = {"bad": bad}
