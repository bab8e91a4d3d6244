"""The acquisition-only twin: a classifier on facts of the files that does not look at the image, by the heads' own folds."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.subgroups import MISSING, numbers_of, with_missing
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.task import Task
from hoarfrost.features.decoding.formats import FRAME_MARK
from hoarfrost.features.facts import Facts
from hoarfrost.runs import Acquisition
from hoarfrost.runs.acquisition import BYTES, GREY_LEVELS, REGION_SIZE, Twin, content_of, of_file
from hoarfrost.training import HeldRows
from hoarfrost.training.references import LINEAR, ReferenceFit, fit_references

PENALTIES = (3e-3, 3e-2, 0.3)  # C: a few columns need fewer than 512 features
FEWEST = 5  # images of the development set with a value, for a column of its own
MOST_VALUES = 20
QUANTILES = np.arange(1, 5) / 5
IMAGE_SIZE = ("pixel width", "pixel height", "aspect ratio")
KINDS = {
    "file type": "format", "colour mode": "mode", "modality": "modality", "manufacturer": "manufacturer",
    "model": "model", "EXIF": "exif",
}  # fmt: skip
COUNTS = {"bits per channel": "bits", "channels": "channels"}
"""The names of the kinds in a file's header and of its depth, and those in the cache."""
MEASURED = ("width", "height", "mean", "sd", "skewness", "kurtosis")
RecordedFacts = dict[str, list[str] | Floats]
TWIN = replace(LINEAR, settings=PENALTIES)


def acquisition_twin(task: Task, development: Development) -> Acquisition | None:
    """Fit logistic regression on facts of the files and on attributes, and score it as the heads are scored.

    Parameters
    ----------
    task : Task
    development : Development
        The folds of the heads: the penalty is chosen by out-of-fold loss.

    Returns
    -------
    Acquisition or None
        None where all images have the same facts, or the classifier cannot be fitted on so few images.

    Notes
    -----
    Each fit is on at most 5,000 images, and standardises the columns by these. A quantity enters as itself and as fifths
    (bytes as their logarithm), a text as one column for each value that five images of the development set have, a missing
    value among them. Labels play no part in this. Out of fold, the variance allows for training sets that overlap (Nadeau
    and Bengio 2003), as in cross-validation.
    """
    facts = facts_of(task)
    content, found = content_of(facts), {name: _encoded(values, development.rows) for name, values in facts.items()}
    columns = {name: x for name, x in found.items() if x.shape[1]}
    twin = _scored(task, development, columns) if columns else None
    if twin is None:
        return None
    without = {name: x for name, x in columns.items() if name not in content}
    headers = _scored(task, development, without) if 0 < len(without) < len(columns) else None
    both = Acquisition(**vars(twin), headers=headers)
    return both if both.suspect() is None else replace(both, by_fact=_alone(task, development, columns))


def _scored(task: Task, development: Development, columns: Mapping[str, npt.NDArray[np.float32]]) -> Twin | None:
    fit = _fitted(task, development, columns)
    if fit is None:
        return None
    probabilities = _joined(fit)
    n_folds = {"val": len(development.folds), "test": 1}
    scores = {
        name: task.score(rows, probabilities[rows], n_folds=n_folds[name]).auc for name, rows in task.scored.items()
    }
    return Twin(tuple(columns), fit.setting, scores["val"], scores.get("test"))


def facts_of(task: Task) -> RecordedFacts:
    """Return what is known of the readable images without looking at them.

    These are the format and the bytes of the files, what the cache recorded of their headers and grey levels, and every
    attribute. An attribute keeps its name; a fact of the same name gets another.
    """
    table, attributes = task.table, task.attributes()
    names = [path.split(FRAME_MARK)[0].lower() for path in compress(table.paths, task.readable)]
    n_bytes = table.sizes[task.readable].astype(float)
    found: RecordedFacts = {
        "format": [os.path.splitext(name)[1] for name in names],
        BYTES: np.where(n_bytes < 0, np.nan, np.log2(np.maximum(1, n_bytes))),
    }
    if task.facts is not None:
        found |= recorded_facts(task.facts, is_region=task.is_region)
    return {name if name not in attributes else of_file(name): one for name, one in found.items()} | attributes


def recorded_facts(facts: Facts, *, is_region: bool) -> RecordedFacts:
    """Return the facts that a cache recorded of n images, by name: texts, or numbers (n,) with NaN where they are unknown.

    Of regions, the size is that of a box, which somebody drew.
    """
    numbers = {name: np.where(facts.known, facts.numbers[name].astype(float), np.nan) for name in MEASURED}
    size = (numbers["width"], numbers["height"], numbers["width"] / numbers["height"])
    return {
        **{name: facts.texts(kind) for name, kind in KINDS.items()},
        **{name: [str(n or "") for n in facts.numbers[column].tolist()] for name, column in COUNTS.items()},
        **dict(zip(REGION_SIZE if is_region else IMAGE_SIZE, size, strict=True)),
        **{name: numbers[column] for name, column in zip(GREY_LEVELS, MEASURED[2:], strict=True)},
    }


def _encoded(values: "Sequence[str] | Floats", learnt: Ints) -> npt.NDArray[np.float32]:
    """Return a fact as columns (n, k), by what the rows `learnt` have; k = 0 if it is the same for all of them."""
    columns: list[npt.NDArray[np.bool_] | Floats] = []
    if not isinstance(values, np.ndarray) and len(set(values)) == 1:  # most kinds, of a million images
        return np.empty((len(values), 0), np.float32)
    texts = [] if isinstance(values, np.ndarray) else with_missing(values)
    own = values if isinstance(values, np.ndarray) else _as_numbers(texts, learnt)
    if own is None:
        counts = Counter(texts[row] for row in learnt)
        common = [value for value, n in counts.most_common(MOST_VALUES) if n >= FEWEST]
        columns = [np.array(texts, dtype=object) == value for value in common]
    elif len(known := own[learnt][~np.isnan(own[learnt])]):
        filled = np.where(np.isnan(own), np.median(known), own)
        columns = [filled, *(filled > edge for edge in np.unique(np.quantile(known, QUANTILES))), np.isnan(own)]
    kept = [column.astype(np.float32) for column in columns if np.ptp(column[learnt].astype(np.float64)) > 0]
    return np.stack(kept, axis=1) if kept else np.empty((len(values), 0), np.float32)


def _as_numbers(texts: Sequence[str], learnt: Ints) -> Floats | None:
    """Return a column of texts as numbers, NaN for missing ones; None if it is not one of numbers."""
    if numbers_of([texts[row] for row in learnt]) is None:
        return None
    return np.array([np.nan if text == MISSING else _number(text) for text in texts])


def _number(text: str) -> float:
    """Return a number; NaN for a text that only images outside of the development set have."""
    try:
        found = float(text)
    except ValueError:
        return np.nan
    return found if np.isfinite(found) else np.nan


def _fitted(
    task: Task, development: Development, columns: Mapping[str, npt.NDArray[np.float32]]
) -> ReferenceFit | None:
    x = HeldRows(torch.from_numpy(np.concatenate(list(columns.values()), axis=1)))
    others = np.setdiff1d(np.arange(len(task.y)), development.validated)
    fits = fit_references(x, task.y, development.folds, development.rows, others, kinds=(TWIN,))
    return fits[0] if fits else None


def _joined(fit: ReferenceFit) -> Floats:
    return np.where(np.isnan(fit.out_of_fold), fit.probabilities, fit.out_of_fold)


def _alone(task: Task, development: Development, columns: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, float]:
    """Return the ROC AUC of each fact alone, on the images that heads are scored on."""
    rows, found = list(task.scored.values())[-1], {}
    for name, x in columns.items():
        fit = _fitted(task, development, {name: x})
        if fit is not None:
            found[name] = task.roc_auc(rows, _joined(fit)[rows])
    return found
