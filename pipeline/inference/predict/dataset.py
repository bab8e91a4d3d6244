"""Predict images from any place into a CSV: embedded as the head's own images were, then predicted in blocks."""

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.conformal import COVERAGE
from hoarfrost.features.cache import EmbeddingCache, Header, are_unseen
from hoarfrost.features.datasets.pseudonyms import salt_path
from hoarfrost.features.errors import CacheError, HoarfrostError
from hoarfrost.features.extraction.extract import EmbeddedDataset, embed_like
from hoarfrost.features.extraction.interrupts import StoppedError
from hoarfrost.features.extraction.plan import ExtractOptions, Progress
from hoarfrost.features.fingerprint import FILE_BYTES
from hoarfrost.inference.predict.cached import cached_dataset, is_cache
from hoarfrost.inference.predict.opening import open_predictor, run_head
from hoarfrost.inference.predict.output import ImageCsv, PatientTable, check_output, csv_writer, patients_path
from hoarfrost.inference.predict.predictor import Prediction, Predictor
from hoarfrost.inference.sources import training_keys
from hoarfrost.runs import RunHeads, images_alone, read_heads

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BLOCK_ROWS = 4_096
SHOWN = 3  # paths in a note
NOT_FINITE = "the embedding is not finite; the weights may be damaged"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionSummary:
    """What was predicted, as `predict --json` prints it.

    `images` = `predicted` + `failed`; `forward_images` went through the backbone. `set_sizes` counts images by the number
    of classes in their conformal set (with several labels: of labels that stay undecided). `out_of_distribution` and
    `novelty_threshold` are None if there are too few validation images for a threshold. `patients` and `patients_output`
    are None if patients are unknown. `notes` state what is missing. `in_training_split` are the paths of images whose bytes
    were in the run's training split; None if that is not known. `operating_point` names the rule and the threshold that
    decide; it is empty with more than two classes.
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
    images: int
    failed: int
    forward_images: int
    seconds: float
    output: str
    patients_output: str | None
    patients: int | None
    per_patient: str | None
    errors: tuple[tuple[str, str], ...]
    in_training_split: tuple[str, ...] | None = None
    operating_point: str = ""


def predict_dataset(
    data: Path | str | Sequence[Path | str],
    output: Path,
    *,
    dataset: str | None = None,
    run: Path | None = None,
    head: str | None = None,
    cache: Path | None = None,
    weights: str | None = None,
    per_patient: str | None = None,
    coverage: float = COVERAGE,
    at: str | None = None,
    prevalence: float | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> PredictionSummary:
    """Predict images into a CSV, one row per image; rows of unreadable images state the reason.

    Parameters
    ----------
    data : Path, str or sequence of them
        See `hoarfrost.features.datasets.read_unlabelled`; or caches with the embeddings of each of the head's encoders.
    output : Path
        The CSV; an earlier prediction there is replaced. The patients' CSV, if patients are known, is written beside it.
    dataset : str, optional
        Which dataset of the caches, if `data` are caches; not needed if there is only one.
    run : Path, optional
        The run folder; without it `head` is a file.
    head : str, optional
        One of the run's heads, by default the selected one; or a head file.
    cache : Path, optional
        Where embeddings are looked up and kept. Without it they are not kept. Embeddings in the run's own cache are
        reused; nothing is written to it unless it is named here.
    weights : str, optional
        Where the backbone's weights are now, if they were moved.
    per_patient : "mean" or "max", optional
        How a patient's probabilities are joined; by default as in the run, or by their mean.
    coverage : float
        Of the conformal sets.
    at : str, optional
        Another operating point than the head's first one: "sensitivity >= 0.95" is "sensitivity=0.95".
    prevalence : float, optional
        Of the positive class where the images are from; calibrated probabilities are shifted to it.
    options : ExtractOptions, optional
        How to read and compute; weights, precision and window are the head's.
    on_progress : callable
        Called after each batch.

    Raises
    ------
    HoarfrostError
        One of its children: dataset, run, weights, fingerprint, cache, output; or if no image can be read, after
        `output` has been written.
    """
    started = time.monotonic()
    heads = None if run is None else read_heads(run)
    predictor = named_predictor(heads, head, coverage, at, prevalence)
    if per_patient is not None:
        predictor.require_unit(per_patient)
    data, *others = [data] if isinstance(data, Path | str) else data
    are_caches = bool(others) or is_cache(data)
    if are_caches and (cache is not None or weights is not None):
        raise HoarfrostError("--cache and --weights are for images. The embeddings of a cache need neither. Omit them.")
    if dataset is not None and not are_caches:
        raise HoarfrostError(f"--dataset {dataset} names a dataset of a cache, but DATA are images. Omit it.")
    check_output(output, data, [cache, *map(Path, others), *([Path(head)] if run is None and head else [])], run)
    with ExitStack() as stack:
        opened: EmbeddingCache | None
        if are_caches:
            embedded, opened = stack.enter_context(cached_dataset([data, *others], predictor, dataset))
        else:
            own = None if heads is None else Path(heads.config.embeddings.cache)
            place, source_cache = stack.enter_context(workplace(cache, own, predictor.header))
            embedded = embed_like(
                data, place, predictor.header, weights=weights, source_cache=source_cache, options=options,
                on_progress=on_progress,
            )  # fmt: skip
            opened = stack.enter_context(EmbeddingCache(place)) if place.exists() else None  # not if nothing was read
        trained_on, notes = _trained_on(embedded, run)
        notes += [] if heads is None else images_alone(heads.config.covariates)
        summary = _write(
            embedded, opened, predictor, output, per_patient or predictor.head.per_patient or "mean", started,
            trained_on, notes,
        )  # fmt: skip
    if not summary.predicted:
        path, reason = summary.errors[0]
        raise HoarfrostError(
            f"{data}: none of the {summary.images} images could be read. The first: {path}: {reason}. {output} lists all."
        )
    return summary


def _trained_on(embedded: EmbeddedDataset, run: Path | None) -> tuple[Bools | None, list[str]]:
    """Return which images were in the run's training split, (n,) bool, and what is to be said of them."""
    if run is None:
        return None, []
    try:
        known = {key[:FILE_BYTES] for key in training_keys(run)}
    except HoarfrostError as error:
        return None, [f"Whether images were in the training split is not known. {error}"]
    found = np.fromiter((key.tobytes()[:FILE_BYTES] in known for key in embedded.keys), bool, len(embedded.keys))
    found[list(embedded.errors)] = False
    places = np.flatnonzero(found)
    if not len(places):
        return found, []
    first = ", ".join(embedded.dataset.paths[place] for place in places[:SHOWN].tolist())
    others = " and others (--json lists all)" if len(places) > SHOWN else ""
    how = "by path and embedding" if are_unseen(embedded.keys[places]).all() else "by their bytes"
    note = (
        f"{len(places):,} of {len(found):,} images were in the run's training split ({how}): {first}{others}. The "
        "head learned from them, so these predictions do not show how it does on new images."
    )
    return found, [note]


def named_predictor(
    heads: RunHeads | None,
    head: str | None,
    coverage: float = COVERAGE,
    at: str | None = None,
    prevalence: float | None = None,
) -> Predictor:
    """Open a head of a run, by default the selected one, or a head file; raise HoarfrostError if it is neither."""
    if heads is not None:
        return Predictor(run_head(heads, head), coverage=coverage, at=at, prevalence=prevalence)
    if head is None:
        raise HoarfrostError(
            "No run and no head was named. Name a run with --run DIR, or a head file with --head FILE."
        )
    if Path(head).is_dir():
        raise HoarfrostError(f"--head {head} is a folder. If it is a run, use --run; otherwise name a head file.")
    return open_predictor(Path(head), coverage=coverage, at=at, prevalence=prevalence)


@contextmanager
def workplace(cache: Path | None, own: Path | None, header: Header) -> Iterator[tuple[Path, EmbeddingCache | None]]:
    """Yield the cache to embed into, a temporary one if none is named, and the run's `own` to copy from."""
    with ExitStack() as stack:
        source_cache = None
        if own is not None and own.exists() and not (cache is not None and cache.exists() and cache.samefile(own)):
            source_cache = _open_source_cache(own, header, stack)
        if cache is not None:
            yield cache, source_cache
            return
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hoarfrost-"))) / "embeddings.h5"
        if own is not None and salt_path(own).is_file():  # so that a patient has the pseudonym that the run knows
            shutil.copy(salt_path(own), salt_path(place))
        try:
            yield place, source_cache
        except StoppedError as error:
            raise HoarfrostError(f"{error.when}. No embeddings were kept. To keep them, use --cache FILE.") from error
        except CacheError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise HoarfrostError(
                f"{place.parent}: temporary embeddings cannot be kept there: {error.__cause__.strerror}. Free space on the "
                "disk, or name a file on another disk with --cache FILE."
            ) from error


def _open_source_cache(path: Path, header: Header, stack: ExitStack) -> EmbeddingCache | None:
    try:
        found = stack.enter_context(EmbeddingCache(path))
    except CacheError as error:
        logger.warning("The run's own cache cannot be used, so its images are embedded again. %s", error)
        return None
    return found if found.header.fingerprint == header.fingerprint else None


# -- writing ------------------------------------------------------------------------------------------------------------


class _Tally:
    """Counts of the images that are written, and what their patients need.

    `probabilities` (n, C) are NaN of unreadable images, and have no rows without patients; `is_novel` is (n,) bool.
    """

    def __init__(self, predictor: Predictor, n_images: int, *, of_patients: bool) -> None:
        self._predictor, self._of_patients = predictor, of_patients
        self.n = 0
        self.called: Counter[str] = Counter()
        self.set_sizes: Counter[str] = Counter()
        self.probabilities = np.full((n_images if of_patients else 0, len(predictor.names)), np.nan)
        self.is_novel = np.zeros(n_images, bool)

    def add(self, places: Ints, found: Prediction) -> None:
        """Count some images, at these places in the dataset."""
        self.n += len(places)
        self.called.update(self._predictor.answers(found.called))
        is_open = found.sets if found.sets.ndim == 2 else found.sets.all(axis=2)
        self.set_sizes.update(str(size) for size in is_open.sum(axis=1).tolist())
        if found.is_novel is not None:
            self.is_novel[places] = found.is_novel
        if self._of_patients:
            self.probabilities[places] = found.probabilities


def _write(
    embedded: EmbeddedDataset,
    cache: EmbeddingCache | None,
    predictor: Predictor,
    output: Path,
    how: str,
    started: float,
    trained_on: Bools | None,
    notes: list[str],
) -> PredictionSummary:
    """Write the images' CSV, and the patients' if these are known."""
    dataset, errors = embedded.dataset, dict(embedded.errors)
    patients = dataset.patients if how in predictor.units else None
    tally = _Tally(predictor, len(dataset), of_patients=patients is not None)
    with csv_writer(output) as writer:
        table = ImageCsv(writer, dataset, predictor)
        for places, found in _predicted(embedded, cache, predictor, errors):
            table.add(places, found, errors)
            tally.add(_without(places, errors), found)
    notes, n_patients = [*notes, *_notes(predictor)], None
    if patients is not None:
        of_patients = PatientTable(predictor, how, patients)
        n_patients = of_patients.write(patients_path(output), tally.probabilities, tally.is_novel)
        notes += of_patients.notes()
    elif patients_path(output).exists():
        notes.append(f"{patients_path(output)} is from an earlier prediction. This prediction has no patients.")
    for note in notes:
        logger.warning("%s", note)
    has_threshold = np.isfinite(predictor.novelty_threshold)
    return PredictionSummary(
        predicted=tally.n,
        head=predictor.head.name,
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
        images=len(dataset),
        failed=len(errors),
        forward_images=embedded.forward_images,
        seconds=time.monotonic() - started,
        output=str(output),
        patients_output=None if patients is None else str(patients_path(output)),
        patients=n_patients,
        per_patient=None if patients is None else how,
        errors=tuple((dataset.paths[place], reason) for place, reason in sorted(errors.items())),
        in_training_split=None
        if trained_on is None
        else tuple(dataset.paths[place] for place in np.flatnonzero(trained_on).tolist()),
        operating_point=predictor.decided_by(),
    )


def _without(places: Ints, errors: Mapping[int, str]) -> Ints:
    return np.array([place for place in places.tolist() if place not in errors], np.int64)


def _predicted(
    embedded: EmbeddedDataset, cache: EmbeddingCache | None, predictor: Predictor, errors: dict[int, str]
) -> Iterator[tuple[Ints, Prediction]]:
    """Predict block by block: yield places (B,) in the dataset, and the predictions of those without an error."""
    for first in range(0, len(embedded.dataset), BLOCK_ROWS):
        places = np.arange(first, min(first + BLOCK_ROWS, len(embedded.dataset)))
        good = _without(places, errors)
        x = np.empty((0, len(predictor.head.views), predictor.header.dim), np.float32)
        if cache is not None and len(good):
            rows = [cache.rows_of(embedded.keys[good], view) for view in predictor.head.views]
            x = np.stack([cache.embeddings(of_view) for of_view in rows], axis=1)
        finite = np.isfinite(x).all(axis=(1, 2))
        errors.update(dict.fromkeys(good[~finite].tolist(), NOT_FINITE))
        yield places, predictor.predict(x[finite])


def _notes(predictor: Predictor) -> list[str]:
    """Return what there are too few validation images for."""
    found, n = list(predictor.assumptions()), predictor.n_validated()
    if not predictor.has_sets():
        found.append(
            f"Too few validation images ({n}) for a coverage of {predictor.coverage:g}. Each set holds all classes."
        )
    if not np.isfinite(predictor.novelty_threshold):
        found.append(
            f"Too few validation images ({n}) for a threshold of {predictor.false_alarms:g} false alarms. No image is "
            "reported as out of distribution."
        )
    return found
