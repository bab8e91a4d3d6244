"""100,000 predictions of many patients: evaluated and reported within seconds and 1 GB."""

import resource
from pathlib import Path

import pytest

from tests.benchmarks.extraction import peak_mb
from tests.benchmarks.report import write_predictions

MOST_S = 25.0  # of the processor: 10 on a machine that does little else, more on cores that share their units
MOST_MB = 500.0


@pytest.mark.slow
def test_a_hundred_thousand_predictions_take_seconds_and_less_than_a_gigabyte(tmp_path: Path) -> None:
    table, output = write_predictions(tmp_path / "p.csv"), tmp_path / "e"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = max(
        peak_mb("hoarfrost", "evaluate", "--predictions", str(table), "--output", str(output)),
        peak_mb("hoarfrost", "report", "--run", str(output)),
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    assert (output / "report.html").stat().st_size < 3e6
    assert seconds < MOST_S
    assert peak * 1.048576 < MOST_MB
