"""`make bench`: measures what the README claims, prints a table, writes artifacts/bench.json.

`python -m tests.benchmarks cache` runs one group, `python -m tests.benchmarks cache.kills` one measurement.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from features.cache import library_versions
from tests.benchmarks import cache, extraction, heads, statistics
from tests.benchmarks.measurement import Measurement

GROUPS: dict[str, dict[str, Callable[[Path], list[Measurement]]]] = {
    "extraction": extraction.MEASUREMENTS,
    "heads": heads.MEASUREMENTS,
    "statistics": statistics.MEASUREMENTS,
    "cache": cache.MEASUREMENTS,
}


def main(wanted: list[str]) -> None:
    results = []
    print(f"{machine()}\n\n| what | measured | demanded |\n|---|---|---|")
    for group, measurements in GROUPS.items():
        for name, measure in measurements.items():
            if wanted and group not in wanted and f"{group}.{name}" not in wanted:
                continue
            with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
                for result in measure(Path(folder)):
                    print(f"| {result.what} | {result.measured} | {result.demanded} |", flush=True)
                    results.append({"group": group, "name": name, **vars(result)})
    Path("artifacts").mkdir(exist_ok=True)
    document = {
        "machine": machine(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **library_versions()},
        "results": results,
    }
    Path("artifacts/bench.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main(sys.argv[1:])
