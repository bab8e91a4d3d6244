"""Images that are worth a look: confident errors, uncertain cases, near-duplicates, labels to check.

An image is shown only if the file still has the bytes that were embedded: a report with another image would be false.
Captions hold a path, labels and probabilities, and nothing that is read from a file.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation.metrics import THRESHOLD
from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.external.thresholds import folds_of
from hoarfrost.features.encoder.families import spelled
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import DatasetError, ImageDecodeError, RemoteError
from hoarfrost.features.fingerprint import window_asked_for
from hoarfrost.inference.sources import RunSource
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation, evaluation_of
from hoarfrost.report.words import decimal, several
from hoarfrost.runs import Run

if TYPE_CHECKING:
    import numpy.typing as npt

    from hoarfrost.features.datasets.table import Content
    from hoarfrost.inference.explain import Explainer

N_CASES, N_PAIRS = 8, 4  # of a group: one row on a laptop
PICTURES_BYTES = 6_000_000  # of all images together, so that the page stays small; each has an equal part
MAP_SIDE = 320


@dataclass(frozen=True)
class Case:
    """An image and the lines of its caption; `subject` is the number of the class that a map of it is of, if any."""

    path: str
    lines: tuple[str, ...]
    subject: int | None = None


@dataclass(frozen=True)
class CaseGroup:
    """Cases that are shown together for one reason: single ones, or pairs."""

    title: str
    note: str
    cases: tuple[tuple[Case, ...], ...]


@dataclass(frozen=True)
class Pictures:
    """Data URIs by path; `reasons` explains each missing one, and `note` why all are missing.

    `maps` are those of the images under the parts that speak for and against a class, by path and number of the class.
    """

    uris: dict[str, str] = field(default_factory=dict)
    maps: dict[tuple[str, int], str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    note: str = ""


def groups_of(run: Run, evaluation: Evaluation) -> dict[str, CaseGroup]:
    """Choose the cases of a run that are worth a look.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation
        Of images.

    Returns
    -------
    dict of str -> CaseGroup
        "errors", "unsure", "duplicates" and "suspects"; some may be empty.
    """
    return dict(_judged(run, evaluation)) | {"duplicates": _near_duplicates(run), "suspects": _suspects(run)}


def _judged(run: Run, evaluation: Evaluation) -> Iterator[tuple[str, CaseGroup]]:
    """Yield the selected head's most confident errors and its least certain cases."""
    rows = run.rows_of(evaluation.split)
    head = run.head(run.selected)
    counted = evaluation_of(run)
    limits = _limits(run, counted)
    answers = (_label_answers if evaluation.is_multilabel else _class_answers)(run, counted, rows, limits)
    highest = f" Each {counted.unit} is shown by the {run.config.sample} with the highest probability."
    shown = highest if run.config.per_patient else ""
    wrong = sorted((answer for answer in answers if not answer.is_right), key=lambda answer: -answer.confidence)
    unsure = sorted(answers, key=lambda answer: answer.confidence)
    yield (
        "errors",
        CaseGroup(
            "Most confident errors",
            f"Wrong predictions of {run.selected} on the {counted.samples()} "
            f"({evaluation.decided_by(head)}), the most confident first.{shown}",
            tuple((replace(answer.case, subject=answer.subject),) for answer in wrong[:N_CASES]),
        ),
    )
    what = "probability" if run.scale_of(run.selected) is None else "score"
    closest = "two most probable answers are closest" if limits is None else f"{what} is closest to the threshold"
    note = f"The {closest}{' to each other' if limits is None else ''}."
    yield "unsure", CaseGroup("Least certain", note, tuple((answer.case,) for answer in unsure[:N_CASES]))


def _limits(run: Run, counted: Evaluation) -> "npt.NDArray[np.float64] | None":
    """Return the thresholds that decided each sample, (n, 1) or (n, C); None where the most probable answer is predicted."""
    n, thresholds = len(counted.y_true), counted.scores(run.head(run.selected)).thresholds
    if thresholds:
        return np.tile(thresholds, (n, 1))
    classes = (
        () if run.assessment is None or not (counted.is_binary or counted.is_multilabel) else run.assessment.classes
    )
    # Of each class the first point that all folds reach, as it was when the samples were scored.
    by_fold = [next((point.by_fold for point in one.points if point.by_fold), ()) for one in classes]
    if not by_fold or not all(by_fold):
        return None
    groups = np.arange(n) if counted.patients is None else counted.patients
    return np.array(by_fold).T[folds_of(counted.y_true, groups, counted.classes)]


@dataclass(frozen=True)
class _Answer:
    """A head's answer; `confidence` is its lead over the next answer, `subject` the class that a map is of."""

    case: Case
    subject: int
    is_right: bool
    confidence: float


def _class_answers(
    run: Run, evaluation: Evaluation, rows: "npt.NDArray[np.intp]", limits: "npt.NDArray[np.float64] | None"
) -> list[_Answer]:
    """Return one answer for each unit of `evaluation`: an image, or a patient."""
    p = evaluation.probabilities[run.selected]
    predicted, lead = p.argmax(axis=1), np.ptp(np.sort(p, axis=1)[:, -2:], axis=1)
    if limits is not None:
        predicted = (p[:, 1] >= limits[:, 0]).astype(np.int64)
        lead = 2 * np.abs(p[:, 1] - limits[:, 0])
    differ = limits is not None and np.ptp(limits) > 0
    subjects = np.ones_like(predicted) if evaluation.is_binary else predicted
    of_patients = evaluation.unit == "patient"
    shown = _highest_images(run, rows, subjects) if of_patients else [(int(row), "") for row in rows]
    is_right, answers, scale = predicted == evaluation.y_true, [], run.scale_of(run.selected)
    for i in _shown_first(is_right, lead):
        row, joined = shown[i]
        sure = decimal(p[i, predicted[i]]) if scale is None else f"score {scale.text(p[i, 1])}"
        predicted_as = f"predicted {evaluation.classes[predicted[i]]}, {sure}"
        label = evaluation.classes[evaluation.y_true[i]] if of_patients else run.predictions.labels[row]
        case = Case(
            run.predictions.paths[row],
            (
                f"label {label}",
                f"patient {predicted_as} {joined}" if joined else predicted_as,
                *([f"threshold of its fold {decimal(limits[i, 0])}"] if limits is not None and differ else []),
            ),
        )
        answers.append(_Answer(case, int(subjects[i]), bool(is_right[i]), float(lead[i])))
    return answers


def _shown_first(is_right: "npt.NDArray[np.bool_]", lead: "npt.NDArray[np.float64]") -> list[int]:
    """Return the places of the most confident errors and of the least certain answers: no other is ever shown."""
    errors = np.flatnonzero(~is_right)
    errors = errors[np.argsort(-lead[errors], kind="stable")[:N_CASES]]
    return sorted({*errors.tolist(), *np.argsort(lead, kind="stable")[:N_CASES].tolist()})


def _highest_images(run: Run, rows: "npt.NDArray[np.intp]", subjects: "npt.NDArray[np.int64]") -> list[tuple[int, str]]:
    """Return for each patient the row of the image with the highest probability of a class, and how it counts."""
    numbers = patient_numbers([run.predictions.patients[row] for row in rows])
    p, found = run.predictions.probabilities[run.selected], []
    for number, subject in zip(np.unique(numbers), subjects, strict=True):
        own = rows[numbers == number]
        joined = f"({run.config.per_patient} of {several(len(own), 'image')})"
        found.append((int(own[p[own, subject].argmax()]), joined))
    return found


def _label_answers(
    run: Run, evaluation: Evaluation, rows: "npt.NDArray[np.intp]", limits: "npt.NDArray[np.float64] | None"
) -> list[_Answer]:
    """Return one answer for each label that is known of an image."""
    p = evaluation.probabilities[run.selected]
    answers = []
    for i, number in np.argwhere(evaluation.y_true >= 0):
        has, found = bool(evaluation.y_true[i, number]), float(p[i, number])
        lines = (f"{evaluation.classes[number]}: {'yes' if has else 'no'}", f"probability {decimal(found)}")
        case = Case(run.predictions.paths[rows[i]], lines)
        at = THRESHOLD if limits is None else float(limits[i, number])
        answers.append(_Answer(case, int(number), (found >= at) == has, 2 * abs(found - at)))
    return answers


def _near_duplicates(run: Run) -> CaseGroup:
    pairs = run.leakage.near_duplicates if run.leakage is not None else ()
    label = dict(zip(run.predictions.paths, run.predictions.labels, strict=True))

    def case(path: str, split: str, *lines: str) -> Case:
        labelled = [f"label {label[path]}"] if path in label else []
        return Case(path, (SPLIT_NAMES.get(split, split), *labelled, *lines))

    shown = tuple(
        (case(pair.first, pair.first_split), case(pair.second, pair.second_split, f"cosine {decimal(pair.cosine)}"))
        for pair in pairs[:N_PAIRS]
    )
    note = "The closest pairs. A lesion that is in training and test makes the test scores too high."
    return CaseGroup("Near-identical images in two splits", note, shown)


def _suspects(run: Run) -> CaseGroup:
    suspects = run.suspects.images[:N_CASES] if run.suspects is not None else ()
    cases = tuple(
        Case(
            image.path,
            (
                f"{SPLIT_NAMES.get(image.split, image.split)}, label {image.label}",
                f"predicted {image.predicted}, {decimal(image.p_predicted)}",
            ),
        )
        for image in suspects
    )
    found = run.suspects
    n_images, source, has_test = (0, "", False) if found is None else (found.n_images, found.source, found.has_test)
    note = (
        f"Of {n_images:,} images{'' if has_test else ' outside of the test split'}, those whose label is contradicted most "
        f"by heads that never saw them ({source}). A hard image is contradicted too: check before you correct a label."
    )
    if has_test:
        note += (
            " Images of the test split are listed too: correcting labels there by this list makes test scores too high."
        )
    return CaseGroup("Labels to check", note, tuple((case,) for case in cases))


def read_pictures(source: RunSource, groups: Iterable[CaseGroup], explainer: "Explainer | None" = None) -> Pictures:
    """Read the images of some groups, and no other.

    Parameters
    ----------
    source : RunSource
    groups : iterable of CaseGroup
    explainer : Explainer, optional
        Of the selected head, for maps of the errors.

    Returns
    -------
    Pictures
        Images whose content is still what was embedded; for each other image the reason.
    """
    subjects: dict[str, set[int]] = {}
    for case in (case for group in groups for cases in group.cases for case in cases):
        subjects.setdefault(case.path, set()).update(() if case.subject is None else {case.subject})
    pictures = Pictures()
    window = window_asked_for(source.cache.header.fingerprint.preprocessing)
    most_bytes = PICTURES_BYTES // max(1, len(subjects))
    try:
        for path, content in source.contents(sorted(subjects), pictures.reasons):
            _add_picture(pictures, path, content, window, most_bytes)
            if explainer is not None and path in pictures.uris:
                pictures.maps.update(_maps(explainer, path, content, subjects[path]))
    except (DatasetError, RemoteError) as error:
        return Pictures(note=_way_back(source, error))
    return pictures


def _add_picture(pictures: Pictures, path: str, content: "Content", window: str | None, most_bytes: int) -> None:
    from hoarfrost.features.decoding.pictures import thumbnail
    from hoarfrost.features.decoding.windows import Window

    try:  # the window through which the encoder saw it
        parsed = None if window is None else Window.parse(window)
        picture = thumbnail(content, None, parsed, most_bytes=most_bytes)
    except ImageDecodeError as error:
        pictures.reasons[path] = str(error)
    else:
        pictures.uris[path] = _uri(picture)


def _maps(
    explainer: "Explainer", path: str, content: "Content", subjects: Iterable[int]
) -> "dict[tuple[str, int], str]":
    from hoarfrost.features.decoding.pictures import thumbnail
    from hoarfrost.inference.explain import overlay

    pixels, seen = explainer.prepared(content)
    encoder = explainer.backbone.encoder
    found = {}
    for subject in sorted(subjects):
        (explanation,) = explainer.explain([seen], subject)
        found[path, subject] = _uri(thumbnail(overlay(pixels, explanation.cells, encoder, MAP_SIDE), MAP_SIDE))
    return found


def _uri(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(picture).decode()}"


def _way_back(source: RunSource, error: DatasetError | RemoteError) -> str:
    header = source.cache.header
    encoder = header.fingerprint.encoder
    options = ["--cache", str(source.cache.path), "--name", source.table.name]
    options += [] if encoder is DEFAULT else ["--encoder", spelled(encoder, header.weights_path)]
    options += [] if encoder.opened is not None else ["--weights", header.weights]
    return (
        f"{error} The images were read from there. Copy them back, or, if they are elsewhere now, run "
        f"`hoarfrost extract PLACE {shlex.join(options)}`; it does not embed images with the same bytes again. "
        "Then write the report again."
    )
