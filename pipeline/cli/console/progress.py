"""Warnings, progress and interrupts: on stderr, and never where JSON goes."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hoarfrost.features.errors import HoarfrostError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

    from hoarfrost.experiment.experiment import ExperimentConfig, TrainingProgress
    from hoarfrost.features.extraction.plan import Progress

LINE_SECONDS = 10.0  # between lines where stderr is a file or a pipe


class _Lines(logging.Handler):
    """Prints each message as one line on the present stderr, not on that of the time when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        say(f"{'warning: ' if record.levelno >= logging.WARNING else ''}{as_message(record.getMessage())}")


def as_message(text: str) -> str:
    """Return a text, harmless, with what follows a line break indented: a file name may contain what looks like a message."""
    return harmless(text).replace("\n", "\n  ")


def show_warnings() -> None:
    """Send to stderr: the library's warnings, a stop of an extraction, notes about clusters and replaced runs."""
    logging.getLogger("hoarfrost").handlers = [_Lines()]
    for room in ("features.extraction", "experiment"):
        logging.getLogger(f"hoarfrost.{room}").setLevel(logging.INFO)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _bar(*columns: "ProgressColumn | str") -> "Bar":
    """Return a line on the terminal that rich redraws ten times a second, until it is closed."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    return Bar(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def extraction_progress() -> "Iterator[Callable[[Progress], None]]":
    """Show images done, images per second and the time left: one line on a terminal, else a line every ten seconds."""
    if not _is_terminal():
        yield _lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

    with _bar(BarColumn(), MofNCompleteColumn(), "images{task.fields[rate]}, ETA", TimeRemainingColumn()) as bar:
        task = bar.add_task("extract", total=None, rate="")

        def show(progress: "Progress") -> None:
            bar.update(task, completed=progress.done, total=progress.total, rate=_rate_text(progress))

        yield show


def _lines() -> "Callable[[Progress], None]":
    last = time.monotonic()

    def show(progress: "Progress") -> None:
        nonlocal last
        if not progress.done or (time.monotonic() - last < LINE_SECONDS and progress.done < progress.total):
            return
        last = time.monotonic()
        left_s = (progress.total - progress.done) / max(progress.images_per_second, 1e-9)
        say(f"{progress.done}/{progress.total} images{_rate_text(progress)}, ETA {timedelta(seconds=round(left_s))}")

    return show


def _rate_text(progress: "Progress") -> str:
    """Return the images per second, once an image is done, and a cluster's workers."""
    rate = f", {progress.images_per_second:.0f} images/s" if progress.done else ""
    return rate + ("" if progress.workers is None else f", {progress.workers} worker{'s' * (progress.workers != 1)}")


def say(text: str) -> None:
    """Print a line on stderr; continue without it if stderr is closed or full."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Return a text with its control characters escaped: a file name may contain some that clear the screen."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], text)


@contextmanager
def training_progress(n_heads: int, config: "ExperimentConfig") -> "Iterator[Callable[[TrainingProgress], None]]":
    """Show the stage with its totals, the architecture and the epoch: on a terminal as one line that changes."""
    heads = f"{n_heads} head{'' if n_heads == 1 else 's'}"
    stages = {
        "heads": f"training {heads}", "folds": f"training {heads} in {config.n_folds} folds",
        "repeats": f"training {heads} on {config.n_repeats} random splits",
        "sites": f"training {heads} without each {config.leave_out}",
        "curve": "training the selected head on shares of the patients", "scores": "scoring",
    }  # fmt: skip

    def text_of(progress: "TrainingProgress") -> str:
        epoch = f": {progress.shape}, epoch {progress.epoch}"
        return stages[progress.stage] + (epoch if progress.epoch else "")

    if not _is_terminal():
        yield _training_lines(text_of)
        return
    from rich.progress import TimeElapsedColumn

    with _bar("{task.description}", TimeElapsedColumn()) as bar:
        task = bar.add_task("reading the cache", total=None)
        yield lambda progress: bar.update(task, description=text_of(progress))


def _training_lines(text_of: "Callable[[TrainingProgress], str]") -> "Callable[[TrainingProgress], None]":
    """Print a line for each architecture of a stage, and then one every few seconds."""
    printed: dict[tuple[str, str], float] = {}

    def show(progress: "TrainingProgress") -> None:
        key, now = (progress.stage, progress.shape), time.monotonic()
        if progress.epoch and now - printed.get(key, -LINE_SECONDS) >= LINE_SECONDS:
            say(text_of(progress))
            printed[key] = now

    return show


@contextmanager
def interruptible(run: Path) -> Iterator[None]:
    """Turn Ctrl-C during a training into a message that states what is in the run folder."""
    before = _written_at(run)
    try:
        yield
    except KeyboardInterrupt as error:
        if _written_at(run) != before:
            raise HoarfrostError(f"Interrupted, but the run is complete: {run}") from error
        kept = f" The earlier run in {run} is unchanged." if before else ""
        raise HoarfrostError(f"Interrupted; nothing was written.{kept}") from error


def _written_at(run: Path) -> int:
    """Return when a run's scores were written, in nanoseconds; 0 without any."""
    try:
        return (run / "metrics.json").stat().st_mtime_ns
    except OSError:
        return 0
