"""Predict images, wherever they are, into a CSV: embedded as the head's own were, then predicted in blocks."""

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.features.cache import EmbeddingCache, Header
from hoarfrost.features.datasets.pseudonyms import salt_path
from hoarfrost.features.errors import CacheError, HoarfrostError
from hoarfrost.features.extraction.extract import EmbeddedDataset, embed_like
from hoarfrost.features.extraction.interrupts import StoppedError
from hoarfrost.features.extraction.plan import ExtractOptions, Progress
from hoarfrost.inference.predict.opening import open_predictor, run_head
from hoarfrost.inference.predict.output import ImageCsv, PatientTable, check_output, csv_writer, patients_path
from hoarfrost.inference.predict.predictor import COVERAGE, Prediction, Predictor
from hoarfrost.runs import RunHeads, read_heads

Ints = npt.NDArray[np.int64]

BLOCK_ROWS = 4_096
NOT_FINITE = "its embedding is not finite: the weights are probably damaged"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionSummary:
    """What was predicted; `predict --json` prints it.

    `images` = `predicted` + `failed`; `forward_images` went through the backbone. `set_sizes` counts images by how many
    classes their conformal set holds (with several labels, labels that stay open); `out_of_distribution` is None where
    too few validation images tell, and so is `novelty_threshold`. `patients` is None where patients are unknown, and no
    `patients_output` was written. `notes` say what is less than was asked for.
    """

    predicted: int
    head: str
    classes: tuple[str, ...]
    called: Mapping[str, int]
    coverage: float
    set_sizes: Mapping[str, int]
    false_alarms: float
    novelty_threshold: float | None
    out_of_distribution: int | None
    fingerprint: str
    weights: str
    notes: tuple[str, ...]
    images: int = 0
    failed: int = 0
    forward_images: int = 0
    seconds: float = 0.0
    output: str = ""
    patients_output: str | None = None
    patients: int | None = None
    per_patient: str | None = None
    errors: tuple[tuple[str, str], ...] = ()


def predict_dataset(
    data: Path | str,
    output: Path,
    *,
    run: Path | None = None,
    head: str | None = None,
    cache: Path | None = None,
    weights: str | None = None,
    per_patient: str | None = None,
    coverage: float = COVERAGE,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> PredictionSummary:
    """Predict images into a CSV, a row each, those that cannot be read with their reason.

    Parameters
    ----------
    data : Path or str
        What `hoarfrost.features.datasets.read_unlabelled` takes.
    output : Path
        The CSV; an earlier file there is replaced. Patients, where they are known, go beside it.
    run : Path, optional
        The run folder; without it `head` is a file.
    head : str, optional
        Which of the run's heads, by default the selected one; or the file of a head.
    cache : Path, optional
        Where embeddings are looked for and kept. Without it they are kept nowhere. Those that the run's own cache has
        are taken from there; nothing is written to it unless it is named here.
    weights : str, optional
        Where the backbone's weights are now, if not where they were.
    per_patient : "mean" or "max", optional
        How a patient's probabilities are joined; by default as the run did, or their mean.
    coverage : float
        Of the conformal sets.
    options : ExtractOptions, optional
        How to read and compute; weights, precision and window are the head's.
    on_progress : callable
        Called after each batch.

    Returns
    -------
    PredictionSummary

    Raises
    ------
    HoarfrostError
        One of its children: dataset, run, weights, fingerprint, cache, output; or if no image can be read, after
        `output` has been written.
    """
    started = time.monotonic()
    heads = None if run is None else read_heads(run)
    predictor = _predictor(heads, head, coverage)
    if per_patient is not None:
        predictor.require_unit(per_patient)
    check_output(output, data, [cache, *([Path(head)] if run is None and head else [])], run)
    with _workplace(cache, heads, predictor.header) as (place, source_cache):
        embedded = embed_like(
            data, place, predictor.header, weights=weights, source_cache=source_cache, options=options,
            on_progress=on_progress,
        )  # fmt: skip
        written = _write(embedded, place, predictor, output, per_patient or predictor.head.per_patient or "mean")
    summary = replace(written, seconds=time.monotonic() - started)
    if not summary.predicted:
        path, reason = summary.errors[0]
        raise HoarfrostError(
            f"{data}: none of the {summary.images} images could be read. The first: {path}: {reason}. {output} lists each."
        )
    return summary


def _predictor(heads: RunHeads | None, head: str | None, coverage: float) -> Predictor:
    if heads is not None:
        return Predictor(run_head(heads, head), coverage=coverage)
    if head is None:
        raise HoarfrostError("Neither a run nor a head is given. Name one with --run DIR, or --head FILE.")
    if Path(head).is_dir():
        raise HoarfrostError(f"--head {head} is a folder. If it is a run, name it with --run; else name a head's file.")
    return open_predictor(Path(head), coverage=coverage)


@contextmanager
def _workplace(
    cache: Path | None, heads: RunHeads | None, header: Header
) -> Iterator[tuple[Path, EmbeddingCache | None]]:
    """Yield the cache to embed into, a temporary one if none is named, and the run's own to copy from."""
    own = None if heads is None else Path(heads.config.embeddings.cache)
    with ExitStack() as stack:
        source_cache = None
        if own is not None and own.exists() and not (cache is not None and cache.exists() and cache.samefile(own)):
            source_cache = _open_source_cache(own, header, stack)
        if cache is not None:
            yield cache, source_cache
            return
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hoarfrost-"))) / "embeddings.h5"
        if own is not None and salt_path(own).is_file():  # so that a patient has the name that the run knows
            shutil.copy(salt_path(own), salt_path(place))
        try:
            yield place, source_cache
        except StoppedError as error:
            raise HoarfrostError(f"{error.when}. Nothing of it is kept: with --cache FILE it would be.") from error
        except CacheError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise HoarfrostError(
                f"{place.parent}: embeddings cannot be kept there for as long as it takes: {error.__cause__.strerror}. "
                "Make room, or name a file on another disk with --cache FILE."
            ) from error


def _open_source_cache(path: Path, header: Header, stack: ExitStack) -> EmbeddingCache | None:
    try:
        found = stack.enter_context(EmbeddingCache(path))
    except CacheError as error:
        logger.warning("the run's own cache is of no use, and its images are embedded again: %s", error)
        return None
    return found if found.header.fingerprint == header.fingerprint else None


# -- writing ------------------------------------------------------------------------------------------------------------


class _Tally:
    """What is counted while images are written, and kept of them for their patients.

    Attributes
    ----------
    probabilities : ndarray (n, C) float64
        NaN of images that cannot be read; no rows where patients are not asked for.
    is_novel : ndarray (n,) bool
    """

    def __init__(self, predictor: Predictor, n_images: int, *, of_patients: bool) -> None:
        self._predictor = predictor
        self._of_patients = of_patients
        self.n = 0
        self.called: Counter[str] = Counter()
        self.set_sizes: Counter[str] = Counter()
        self.probabilities = np.full((n_images if of_patients else 0, len(predictor.names)), np.nan)
        self.is_novel = np.zeros(n_images, bool)

    def add(self, places: Ints, found: Prediction) -> None:
        """Count some images, whose places in the dataset these are."""
        self.n += len(places)
        self.called.update(self._predictor.answers(found.called))
        is_open = found.sets if found.sets.ndim == 2 else found.sets.all(axis=2)
        self.set_sizes.update(str(size) for size in is_open.sum(axis=1).tolist())
        if found.is_novel is not None:
            self.is_novel[places] = found.is_novel
        if self._of_patients:
            self.probabilities[places] = found.probabilities


def _write(embedded: EmbeddedDataset, cache: Path, predictor: Predictor, output: Path, how: str) -> PredictionSummary:
    """Write the images' CSV, and the patients' where these are known."""
    dataset, errors = embedded.dataset, dict(embedded.errors)
    patients = dataset.patients if how in predictor.units else None
    tally = _Tally(predictor, len(dataset), of_patients=patients is not None)
    with csv_writer(output) as writer:
        table = ImageCsv(writer, dataset, predictor)
        for places, found in _predicted(embedded, cache, predictor, errors):
            table.add(places, found, errors)
            tally.add(_without(places, errors), found)
    notes, n_patients = _notes(predictor), None
    if patients is not None:
        of_patients = PatientTable(predictor, how, patients, patient_numbers(patients))
        n_patients = of_patients.write(patients_path(output), tally.probabilities, tally.is_novel)
        notes += of_patients.notes()
    elif patients_path(output).exists():
        notes.append(f"{patients_path(output)} is of an earlier prediction: this one has no patients")
    for note in notes:
        logger.warning("%s", note)
    summary = _summary(predictor, tally, notes)
    return replace(
        summary,
        images=len(dataset),
        failed=len(errors),
        forward_images=embedded.forward_images,
        output=str(output),
        patients_output=None if patients is None else str(patients_path(output)),
        patients=n_patients,
        per_patient=None if patients is None else how,
        errors=tuple((dataset.paths[place], reason) for place, reason in sorted(errors.items())),
    )


def _summary(predictor: Predictor, tally: _Tally, notes: list[str]) -> PredictionSummary:
    """Say what the head found; of which images, and where it was written, is left open."""
    has_threshold = np.isfinite(predictor.novelty_threshold)
    return PredictionSummary(
        predicted=tally.n,
        head=predictor.head.spec.name,
        classes=predictor.names,
        called=dict(tally.called.most_common()),
        coverage=predictor.coverage,
        set_sizes=dict(sorted(tally.set_sizes.items())),
        false_alarms=predictor.false_alarms,
        novelty_threshold=predictor.novelty_threshold if has_threshold else None,
        out_of_distribution=int(tally.is_novel.sum()) if has_threshold else None,
        fingerprint=predictor.header.fingerprint.digest,
        weights=predictor.header.weights,
        notes=tuple(notes),
    )


def _without(places: Ints, errors: Mapping[int, str]) -> Ints:
    return np.array([place for place in places.tolist() if place not in errors], np.int64)


def _predicted(
    embedded: EmbeddedDataset, cache: Path, predictor: Predictor, errors: dict[int, str]
) -> Iterator[tuple[Ints, Prediction]]:
    """Predict block by block: places (B,) in the dataset, and what is predicted of those that have no error."""
    with ExitStack() as stack:
        opened = stack.enter_context(EmbeddingCache(cache)) if cache.exists() else None  # not where nothing was read
        for first in range(0, len(embedded.dataset), BLOCK_ROWS):
            places = np.arange(first, min(first + BLOCK_ROWS, len(embedded.dataset)))
            good = _without(places, errors)
            x = np.empty((0, predictor.header.dim), np.float32)
            if opened is not None and len(good):
                x = opened.embeddings(opened.rows_of(embedded.keys[good]))
            finite = np.isfinite(x).all(axis=1)
            errors.update(dict.fromkeys(good[~finite].tolist(), NOT_FINITE))
            yield places, predictor.predict(x[finite])


def _notes(predictor: Predictor) -> list[str]:
    """Say what validation was too small for."""
    found = []
    if not predictor.has_sets():
        found.append(
            f"{predictor.n_validated()} validation images are too few for a coverage of {predictor.coverage:g}: each set is "
            "all classes"
        )
    if not np.isfinite(predictor.novelty_threshold):
        found.append(
            f"{predictor.n_validated()} validation images are too few for a threshold of {predictor.false_alarms:g} false "
            "alarms: no image is called out of distribution"
        )
    return found
