"""Which images are worth a look, as small pictures: confident errors, uncertain cases, near-duplicates, suspect labels.

A picture is shown only if the file still has the bytes that were embedded: a report with another picture would lie.
Captions hold a path, labels and probabilities, and nothing that is read from a file.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.features.errors import DatasetError, ImageDecodeError, RemoteError
from hoarfrost.features.fingerprint import window_asked_for
from hoarfrost.inference.sources import RunSource
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation
from hoarfrost.runs import Run

if TYPE_CHECKING:
    import numpy.typing as npt

    from hoarfrost.features.datasets.table import Content
    from hoarfrost.inference.explain import Explainer

N_CASES = 12  # pictures in a group: all groups together stay under half a megabyte
N_PAIRS = 6
SIDE = 128  # pixels: what a picture takes on the page, and enough to tell what it is


@dataclass(frozen=True)
class Case:
    """An image and what is said of it, line by line; `subject` is the number of the class that a map of it is of, if any."""

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
    """Data URIs by path; `reasons` says why there is none. `note` says why there are none at all.

    `maps` are those of the images under what speaks for a class and against it, by path and number of the class.
    """

    uris: dict[str, str] = field(default_factory=dict)
    maps: dict[tuple[str, int], str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    note: str = ""


def groups_of(run: Run, evaluation: Evaluation) -> tuple[CaseGroup, ...]:
    """Choose the cases of a run that are worth a look.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation
        Of images.

    Returns
    -------
    tuple of CaseGroup
        Those that have cases.
    """
    found = [*_judged(run, evaluation), _near_duplicates(run), _suspects(run)]
    return tuple(group for group in found if group.cases)


def _judged(run: Run, evaluation: Evaluation) -> Iterator[CaseGroup]:
    """Give the selected head's most confident errors and its least certain cases."""
    rows = np.flatnonzero(np.array(run.predictions.splits) == evaluation.split)
    answers = (_label_answers if evaluation.is_multilabel else _class_answers)(run, evaluation, rows)
    wrong = sorted((answer for answer in answers if not answer.is_right), key=lambda answer: -answer.confidence)
    unsure = sorted(answers, key=lambda answer: answer.confidence)
    where = f"{run.selected} on {evaluation.samples()}"
    yield CaseGroup(
        "Most confident errors",
        f"{where}: of the wrong answers, those that the head is most sure of.",
        tuple((replace(answer.case, subject=answer.subject),) for answer in wrong[:N_CASES]),
    )
    yield CaseGroup(
        "Least certain",
        f"{where}: those where the two most probable answers are closest to one another.",
        tuple((answer.case,) for answer in unsure[:N_CASES]),
    )


@dataclass(frozen=True)
class _Answer:
    """What a head says of an image; `confidence` is how far its answer is ahead of the next, `subject` what a map is of."""

    case: Case
    subject: int
    is_right: bool
    confidence: float


def _class_answers(run: Run, evaluation: Evaluation, rows: "npt.NDArray[np.intp]") -> list[_Answer]:
    p = evaluation.probabilities[run.selected]
    predicted = p.argmax(axis=1)
    lesser, greater = np.sort(p, axis=1)[:, -2:].T
    answers = []
    for i, row in enumerate(rows):
        lines = (f"label {run.predictions.labels[row]}", f"called {evaluation.classes[predicted[i]]}, {greater[i]:.3f}")
        is_right = bool(predicted[i] == evaluation.y_true[i])
        subject = 1 if evaluation.is_binary else int(predicted[i])
        case = Case(run.predictions.paths[row], lines)
        answers.append(_Answer(case, subject, is_right, float(greater[i] - lesser[i])))
    return answers


def _label_answers(run: Run, evaluation: Evaluation, rows: "npt.NDArray[np.intp]") -> list[_Answer]:
    """Give one answer for each label that is known of an image."""
    p = evaluation.probabilities[run.selected]
    answers = []
    for i, number in np.argwhere(evaluation.y_true >= 0):
        has, found = bool(evaluation.y_true[i, number]), float(p[i, number])
        lines = (f"{evaluation.classes[number]}: {'yes' if has else 'no'}", f"probability {found:.3f}")
        case = Case(run.predictions.paths[rows[i]], lines)
        answers.append(_Answer(case, int(number), (found >= 0.5) == has, abs(2 * found - 1)))
    return answers


def _near_duplicates(run: Run) -> CaseGroup:
    pairs = run.leakage.near_duplicates if run.leakage is not None else ()
    label = dict(zip(run.predictions.paths, run.predictions.labels, strict=True))

    def case(path: str, split: str) -> Case:
        return Case(path, (SPLIT_NAMES.get(split, split), *([f"label {label[path]}"] if path in label else [])))

    shown = tuple(
        (case(pair.first, pair.first_split), case(pair.second, pair.second_split)) for pair in pairs[:N_PAIRS]
    )
    n_pairs = run.leakage.n_near_duplicates if run.leakage is not None else 0
    closest = f", from a cosine of {pairs[0].cosine:.4f}" if pairs else ""
    note = f"Pairs whose embeddings are nearly the same though they are in two splits: {len(shown)} of {n_pairs:,}{closest}."
    return CaseGroup(
        "Near-duplicates across splits", f"{note} The same lesion twice makes a test easier than it is.", shown
    )


def _suspects(run: Run) -> CaseGroup:
    suspects = run.suspects.images[:N_CASES] if run.suspects is not None else ()
    cases = tuple(
        (
            Case(
                image.path,
                (f"label {image.label}, {image.p_label:.3f}", f"more like {image.predicted}, {image.p_predicted:.3f}"),
            ),
        )
        for image in suspects
    )
    source = run.suspects.source if run.suspects is not None else ""
    note = f"Images of all splits whose label heads that never saw them contradict most ({source}). Look before correcting."
    return CaseGroup("Labels to check", note, cases)


def read_pictures(source: RunSource, groups: Iterable[CaseGroup], explainer: "Explainer | None" = None) -> Pictures:
    """Read the images of some groups, and no other, and make small pictures of them.

    Parameters
    ----------
    source : RunSource
    groups : iterable of CaseGroup
    explainer : Explainer, optional
        Of the selected head: the errors are shown with maps of what speaks for a class.

    Returns
    -------
    Pictures
        Of those whose content is still what was embedded; of the others the reason.
    """
    subjects: dict[str, set[int]] = {}
    for case in (case for group in groups for cases in group.cases for case in cases):
        subjects.setdefault(case.path, set()).update(() if case.subject is None else {case.subject})
    pictures = Pictures()
    window = window_asked_for(source.cache.header.fingerprint.preprocessing)
    try:
        for path, content in source.contents(sorted(subjects), pictures.reasons):
            _add_picture(pictures, path, content, window)
            if explainer is not None and path in pictures.uris:
                pictures.maps.update(_maps(explainer, path, content, subjects[path]))
    except (DatasetError, RemoteError) as error:
        return Pictures(note=_way_back(source, error))
    return pictures


def _add_picture(pictures: Pictures, path: str, content: "Content", window: str | None) -> None:
    from hoarfrost.features.decoding.images import thumbnail
    from hoarfrost.features.decoding.windows import Window

    try:  # as the backbone saw it
        picture = thumbnail(content, SIDE, None if window is None else Window.parse(window))
    except ImageDecodeError as error:
        pictures.reasons[path] = str(error)
    else:
        pictures.uris[path] = _uri(picture)


def _maps(
    explainer: "Explainer", path: str, content: "Content", subjects: Iterable[int]
) -> "dict[tuple[str, int], str]":
    from hoarfrost.features.decoding.images import thumbnail
    from hoarfrost.inference.explain import overlay

    pixels, image = explainer.prepared(content)
    encoder = explainer.backbone.encoder
    found = {}
    for subject in sorted(subjects):
        (explanation,) = explainer.explain(image[None], subject)
        found[path, subject] = _uri(thumbnail(overlay(pixels, explanation.cells, encoder, SIDE), SIDE))
    return found


def _uri(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(picture).decode()}"


def _way_back(source: RunSource, error: DatasetError | RemoteError) -> str:
    options = ["--cache", str(source.cache.path), "--name", source.table.name, "--weights", source.cache.header.weights]
    return (
        f"{error} The images were read from there. Bring them back; or, if they are in another place now, run "
        f"`hoarfrost extract PLACE {shlex.join(options)}`, which embeds nothing anew where their bytes are the same. "
        "Then make the report again."
    )
