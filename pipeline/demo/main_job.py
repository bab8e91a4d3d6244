"""The main job on the demo set, from images to a report, as one call: no make, and on any system."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hoarfrost.demo import DemoSummary, write_demo
from hoarfrost.features.extraction.plan import ExtractOptions, Progress

POSITIVE = ("malignant",)


@dataclass(frozen=True)
class DemoReport:
    """What `report_demo` wrote."""

    images: DemoSummary
    cache: Path
    run: Path
    report: Path

    def document(self) -> dict[str, str]:
        """Return what `demo --report --json` prints."""
        places = {"images": self.images.directory, "cache": self.cache, "run": self.run, "report": self.report}
        return {name: str(place) for name, place in places.items()}


def report_demo(
    directory: Path, *, n_images: int, seed: int, weights: str, on_progress: Callable[[Progress], None] = lambda _: None
) -> DemoReport:
    """Write the demo set to `DIR/images`, embed it, train the default heads and write their report.

    Parameters
    ----------
    directory : Path
        Holds `images/`, `cache.h5` and `run/` with `report.html`. What is there already is used again.
    n_images, seed : int
        As for `write_demo`.
    weights : str
        As for `extract`.
    on_progress : callable
        As for `extract`.

    Raises
    ------
    HoarfrostError
        As `write_demo`, `extract`, `train` and `report`.
    """
    # Here: listing commands must stay fast.
    from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
    from hoarfrost.features.extraction.extract import extract
    from hoarfrost.heads.specs import parse_heads
    from hoarfrost.report.outputs import write_report

    images = write_demo(directory / "images", n_images=n_images, seed=seed)
    cache, run = directory / "cache.h5", directory / "run"
    extract(images.directory, cache, options=ExtractOptions(weights=weights), on_progress=on_progress)
    run_experiment(cache, run, parse_heads(()), ExperimentConfig(positive=POSITIVE, overwrite=True))
    return DemoReport(images, cache, run, write_report(run))
