"""`make bench`: measure what the documentation claims; write a table to docs/performance.md and artifacts/bench.json.

`python -m tests.benchmarks cache` runs one group, `python -m tests.benchmarks cache.kills` one measurement.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from hoarfrost.features.cache import library_versions
from tests.benchmarks import (
    cache,
    clinical,
    cluster,
    decoding,
    explain,
    extraction,
    heads,
    images,
    predict,
    report,
    report_map,
    resampling,
    scale,
    serve,
    statistics,
    table,
    views,
    whole,
)
from tests.benchmarks.measurement import Measurement

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
GROUPS: dict[str, dict[str, Callable[[Path], list[Measurement]]]] = {
    "extraction": extraction.MEASUREMENTS | decoding.MEASUREMENTS,
    "whole": whole.MEASUREMENTS,
    "images": images.MEASUREMENTS,
    "heads": heads.MEASUREMENTS,
    "views": views.MEASUREMENTS,
    "predict": predict.MEASUREMENTS,
    "statistics": statistics.MEASUREMENTS | resampling.MEASUREMENTS | clinical.MEASUREMENTS,
    "report": report.MEASUREMENTS | report_map.MEASUREMENTS,
    "explain": explain.MEASUREMENTS,
    "serve": serve.MEASUREMENTS,
    "cache": cache.MEASUREMENTS,
    "scale": scale.MEASUREMENTS,
    "cluster": cluster.MEASUREMENTS,
}
UNTRAINED, TRAINED, NONE = "`random:0`", "ImageNet-trained ResNet18 (CNTK)", "none"
# Of the backbone whose embeddings a group, or one of its measurements, is about. None: embeddings or scores are
# generated, or a stand-in computes nothing.
WEIGHTS = {
    "extraction": UNTRAINED,
    "extraction.decoding_processes": NONE,
    "whole": UNTRAINED,
    "heads.busi": UNTRAINED,
    "heads.nested": "as named",
    "heads.defaults": TRAINED,
    "heads.precisions": TRAINED,
    "views": TRAINED,
    "views.costs": UNTRAINED,
    "predict": UNTRAINED,
    "explain": UNTRAINED,
    "explain.lesions": "as named",
    "serve": UNTRAINED,
    "cluster": UNTRAINED,
    "cluster.scaling": NONE,
    "cluster.memory": NONE,
}


def main(wanted: list[str]) -> None:
    rows: dict[str, list[str]] = {}
    results = []
    print(f"{machine()}\n\n{table.HEAD}")
    for group, measurements in GROUPS.items():
        for name, measure in measurements.items():
            if wanted and group not in wanted and f"{group}.{name}" not in wanted:
                continue
            with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder, nothing_kept(Path(folder)):
                rows[f"{group}.{name}"] = []
                for result in measure(Path(folder)):
                    line = table.row(result, weights_of(group, name))
                    print(line, flush=True)
                    rows[f"{group}.{name}"].append(line)
                    results.append({"group": group, "name": name, **vars(result)})
    if rows:
        PAGE.write_text(table.updated(PAGE.read_text(encoding="utf-8"), machine(), rows), encoding="utf-8")
    Path("artifacts").mkdir(exist_ok=True)
    document = {
        "machine": machine(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **library_versions()},
        "results": results,
    }
    Path("artifacts/bench.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def weights_of(group: str, name: str) -> str:
    """Return what the table says of the backbone's weights for one measurement."""
    return WEIGHTS.get(f"{group}.{name}", WEIGHTS.get(group, NONE))


@contextmanager
def nothing_kept(folder: Path) -> Iterator[None]:
    """Let a measurement, and the processes that it starts, find no speeds and no compiled code of earlier runs."""
    places = {"XDG_CACHE_HOME": folder / "cache-home", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    before = {name: os.environ.get(name) for name in places}
    os.environ.update({name: str(place) for name, place in places.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
