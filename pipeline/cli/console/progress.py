"""Warnings, and how far a command is: on stderr, and never where JSON goes."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hoarfrost.features.extraction.plan import Progress

LINE_SECONDS = 10.0  # between lines where stderr is a file or a pipe


class _Lines(logging.Handler):
    """One line on stderr for each message; on what is stderr then, not when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        say(f"{'warning: ' if record.levelno >= logging.WARNING else ''}{harmless(record.getMessage())}")


def show_warnings() -> None:
    """Send the library's warnings to stderr, and what an extraction reports: a stop, a cluster's workers."""
    logging.getLogger("hoarfrost").handlers = [_Lines()]
    logging.getLogger("hoarfrost.features.extraction").setLevel(logging.INFO)


@contextmanager
def extraction_progress() -> "Iterator[Callable[[Progress], None]]":
    """Show images done, images per second and the time left: one line on a terminal, else a line every ten seconds."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("images{task.fields[rate]}, ETA"), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
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
    """Print a text to stderr; if that is closed or full, continue without."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def harmless(text: str) -> str:
    """Write control characters out: a file's name may hold some that clear the screen."""
    return re.sub(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def training_progress(n_epochs: int) -> "Callable[[str, int], None]":
    """Say which heads are trained, and every few seconds how far they are."""
    last_said: dict[str, float] = {}

    def show(shape: str, epoch: int) -> None:
        now = time.monotonic()
        if shape not in last_said:
            say(f"training {shape}")
        elif now - last_said[shape] > LINE_SECONDS:
            say(f"training {shape}: epoch {epoch} of at most {n_epochs}")
        else:
            return
        last_said[shape] = now

    return show
