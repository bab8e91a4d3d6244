"""The scores of a locked test split, kept in an archive of the run until a command that is counted as a look opens it."""

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.runs.digests import check_digest, digest_of, recorded_digests, replace_digests
from hoarfrost.runs.lock import count_look
from hoarfrost.runs.records import Run

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.csv"
SEALED = "locked.zip"
"""In the run folder, until the first look: `metrics.json` and `predictions.csv` with the test scores."""


def hidden(run: Run) -> Run:
    """Return a run without the scores and predictions of its locked test split; any other run as it is."""
    if run.config.plan is None or run.config.evaluates:
        return run
    twin = run.acquisition
    headers = None if twin is None or twin.headers is None else replace(twin.headers, test=None)
    is_test = np.array(run.predictions.splits) == "test"
    probabilities = {name: np.where(is_test[:, None], np.nan, p) for name, p in run.predictions.probabilities.items()}
    return replace(
        run,
        heads=tuple(
            replace(head, test=None, seeds=tuple(replace(seed, test_roc_auc=None) for seed in head.seeds))
            for head in run.heads
        ),
        references=tuple(replace(one, test=None) for one in run.references),
        comparisons=(),
        assessment=None,
        learning_curve=(),
        views=None if run.views is not None and run.views.basis == "test" else run.views,
        acquisition=None if twin is None else replace(twin, test=None, by_fact={}, headers=headers),
        covariates=None,
        predictions=replace(run.predictions, probabilities=probabilities),
    )


def seal(directory: Path) -> None:
    """Put the files with test scores of a run that is being written into its archive."""
    with zipfile.ZipFile(directory / SEALED, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (METRICS_FILE, PREDICTIONS_FILE):
            archive.write(directory / name, name)


def record_look(directory: Path, command: str) -> int | None:
    """Count a look at a run's test scores, and put them into its files; return as `count_look` does.

    Raises
    ------
    RunError
        If the archive was changed, and then nothing is counted; if the look cannot be recorded, or the scores not be put into
        place.
    """
    finish_look(directory)
    _is_pending(directory)
    number = count_look(directory, command)
    if number is not None:
        _unseal(directory)
    return number


def finish_look(directory: Path) -> None:
    """Put the scores into place if a look that was counted was killed while it did this; otherwise do nothing.

    Raises
    ------
    RunError
        As `record_look`.
    """
    metrics = directory / METRICS_FILE
    if not (directory / SEALED).is_file() or not metrics.is_file():
        return
    recorded = recorded_digests(directory) or {}
    if (SEALED not in recorded or recorded.get(METRICS_FILE) != digest_of(metrics)) and _is_in_place(directory):
        _unseal(directory)


def _is_in_place(directory: Path) -> bool:
    """Return whether the run's metrics.json, the first file that is put into place, is that of the archive."""
    place = directory / SEALED
    try:
        with zipfile.ZipFile(place) as archive:
            return archive.read(METRICS_FILE) == (directory / METRICS_FILE).read_bytes()
    except FileNotFoundError:  # another look at the same time has removed it
        return not place.exists()
    except (OSError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def _is_pending(directory: Path) -> bool:
    """Return whether there is an archive whose files are not in place; raise RunError if it was changed."""
    place = directory / SEALED
    try:
        check_digest(directory, place)
    except FileNotFoundError:  # another look at the same time has removed it
        if place.exists():
            raise
    except RunError:
        # The digest is removed once the files are in place, and then the archive.
        if SEALED in (recorded_digests(directory) or {}) or not _is_in_place(directory):
            raise
        return False
    return place.is_file()


def _unseal(directory: Path) -> None:
    """Replace the files of a run by those in its archive, and remove it; nothing to do without one.

    If the process is killed meanwhile, the archive is still there, and `finish_look` completes this.
    """
    place = directory / SEALED
    try:
        if _is_pending(directory):
            with zipfile.ZipFile(place) as archive:
                contents = {name: archive.read(name) for name in (METRICS_FILE, PREDICTIONS_FILE)}
            for name, content in contents.items():
                with whole_file(directory / name) as file:
                    file.write(content)
            replace_digests(directory, contents, without=SEALED)
        place.unlink(missing_ok=True)
    except FileNotFoundError:  # another look at the same time has done it
        if place.exists():
            raise
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(
            f"{directory}: the scores of its locked test split cannot be put into place: {error}. Make the folder writable. "
            f"If {SEALED} is damaged, train again."
        ) from error


def sealed_file(directory: Path, name: str) -> Path | zipfile.Path:
    """Return where a file of a run is with its test scores: in the archive until the first look, else in the folder.

    Raises
    ------
    RunError
        If the archive was changed.
    """
    place = directory / SEALED
    return zipfile.Path(place, name) if _is_pending(directory) else directory / name
