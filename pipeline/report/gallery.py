"""Which images are worth a look, as small pictures: confident errors, uncertain cases, near-duplicates, suspect labels.

A picture is shown only if the file still has the bytes that were embedded: a report with another picture would lie.
Captions hold a path, labels and probabilities, and nothing that is read from a file.
"""

import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from features.errors import DatasetError, ImageDecodeError
from features.fingerprint import image_key, window_asked_for
from pipeline.report.evaluation import SPLIT_NAMES, Evaluation
from pipeline.report.sources import Source
from pipeline.runs import Run

if TYPE_CHECKING:
    import numpy.typing as npt

    from features.datasets.table import Content

N_CASES = 12  # pictures in a group: all groups together stay under half a megabyte
N_PAIRS = 6
SIDE = 128  # pixels: what a picture takes on the page, and enough to tell what it is


@dataclass(frozen=True)
class Case:
    """An image and what is said of it, line by line."""

    path: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Cases that are shown together for one reason: single ones, or pairs."""

    title: str
    note: str
    cases: tuple[tuple[Case, ...], ...]


@dataclass(frozen=True)
class Pictures:
    """Data URIs by path; `reasons` says why there is none. `note` says why there are none at all."""

    uris: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    note: str = ""


def groups_of(run: Run, evaluation: Evaluation) -> tuple[Group, ...]:
    """Choose the cases of a run that are worth a look.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation
        Of images.

    Returns
    -------
    tuple of Group
        Those that have cases.
    """
    found = [*_judged(run, evaluation), _near_duplicates(run), _suspects(run)]
    return tuple(group for group in found if group.cases)


def _judged(run: Run, evaluation: Evaluation) -> Iterator[Group]:
    """Give the selected head's most confident errors and its least certain cases."""
    rows = np.flatnonzero(np.array(run.predictions.splits) == evaluation.split)
    answers = (_label_answers if evaluation.is_multilabel else _class_answers)(run, evaluation, rows)
    wrong = sorted((answer for answer in answers if not answer.is_right), key=lambda answer: -answer.confidence)
    unsure = sorted(answers, key=lambda answer: answer.confidence)
    where = f"{run.selected} on {evaluation.samples()}"
    yield Group(
        "Most confident errors",
        f"{where}: of the wrong answers, those that the head is most sure of.",
        tuple((answer.case,) for answer in wrong[:N_CASES]),
    )
    yield Group(
        "Least certain",
        f"{where}: those where the two most probable answers are closest to one another.",
        tuple((answer.case,) for answer in unsure[:N_CASES]),
    )


@dataclass(frozen=True)
class _Answer:
    """What a head says of an image; `confidence` is how far its answer is ahead of the next."""

    case: Case
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
        answers.append(_Answer(Case(run.predictions.paths[row], lines), is_right, float(greater[i] - lesser[i])))
    return answers


def _label_answers(run: Run, evaluation: Evaluation, rows: "npt.NDArray[np.intp]") -> list[_Answer]:
    """Give one answer for each label that is known of an image."""
    p = evaluation.probabilities[run.selected]
    answers = []
    for i, number in np.argwhere(evaluation.y_true >= 0):
        has, found = bool(evaluation.y_true[i, number]), float(p[i, number])
        lines = (f"{evaluation.classes[number]}: {'yes' if has else 'no'}", f"probability {found:.3f}")
        case = Case(run.predictions.paths[rows[i]], lines)
        answers.append(_Answer(case, (found >= 0.5) == has, abs(2 * found - 1)))
    return answers


def _near_duplicates(run: Run) -> Group:
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
    return Group(
        "Near-duplicates across splits", f"{note} The same lesion twice makes a test easier than it is.", shown
    )


def _suspects(run: Run) -> Group:
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
    return Group("Labels to check", note, cases)


def read_pictures(source: Source, groups: Iterable[Group]) -> Pictures:
    """Read the images of some groups, and no other, and make small pictures of them.

    Parameters
    ----------
    source : Source
    groups : iterable of Group

    Returns
    -------
    Pictures
        Of those whose content is still what was embedded; of the others the reason.
    """
    paths = {case.path for group in groups for cases in group.cases for case in cases}
    known = sorted(paths & source.place.keys(), key=source.place.__getitem__)
    key = dict(zip(known, source.keys(known), strict=True))
    reasons = dict.fromkeys(paths, "it is not in the cache")
    reasons |= dict.fromkeys(known, "it is not there any more")
    pictures = Pictures(reasons=reasons)
    window = window_asked_for(source.cache.header.fingerprint.preprocessing)
    try:
        for path, content in _contents(source, known, pictures.reasons):
            if image_key(content) != key[path]:
                pictures.reasons[path] = "its content is not what was embedded"
                continue
            _add_picture(pictures, path, content, window)
    except DatasetError as error:
        return Pictures(note=_way_back(source, error))
    return pictures


def _contents(source: Source, paths: Sequence[str], reasons: dict[str, str]) -> "Iterator[tuple[str, Content]]":
    """Read images, in the table's order; note why some cannot be read."""
    from features.datasets import open_images

    images = open_images(source.table.root, source.table.paths)
    for place, read in images.contents([source.place[path] for path in paths]):
        path = source.table.paths[place]
        try:
            content = read()
        except ImageDecodeError as error:
            gone = isinstance(error.__cause__, FileNotFoundError)
            reasons[path] = reasons[path] if gone else str(error)
            continue
        yield path, content


def _add_picture(pictures: Pictures, path: str, content: "Content", window: str | None) -> None:
    from features.images import thumbnail
    from features.windows import Window

    try:  # as the backbone saw it
        picture = thumbnail(content, SIDE, None if window is None else Window.parse(window))
    except ImageDecodeError as error:
        pictures.reasons[path] = str(error)
    else:
        del pictures.reasons[path]
        pictures.uris[path] = f"data:image/jpeg;base64,{b64encode(picture).decode()}"


def _way_back(source: Source, error: DatasetError) -> str:
    options = ["--cache", str(source.cache.path), "--name", source.table.name, "--weights", source.cache.header.weights]
    return (
        f"{error} The images were read from there. Bring them back; or, if they are in another place now, run "
        f"`hoarfrost extract PLACE {shlex.join(options)}`, which embeds nothing anew where their bytes are the same. "
        "Then make the report again."
    )
