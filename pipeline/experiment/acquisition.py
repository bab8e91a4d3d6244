"""The acquisition-only twin: a classifier on what is known of a file without its pixels, by the same folds as the heads."""

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
from hoarfrost.runs import Acquisition
from hoarfrost.training import HeldRows
from hoarfrost.training.references import LOGISTIC_REGRESSION, REFERENCES, ReferenceFit, fit_references

PENALTIES = (3e-3, 3e-2, 0.3)  # C: a few columns need fewer than 512 features
FEWEST = 5  # images of the development set with a value, for a column of its own
MOST_VALUES = 20
QUANTILES = np.arange(1, 5) / 5
TWIN = replace(next(one for one in REFERENCES if one.name == LOGISTIC_REGRESSION), settings=PENALTIES)


def acquisition_twin(task: Task, development: Development) -> Acquisition | None:
    """Fit logistic regression on formats, file sizes and attributes, and score it as the heads are scored.

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
    Each fit is on at most 5,000 images. A quantity enters as itself and as fifths (file sizes as their logarithm), a
    text as one column for each value that five images of the development set have. Labels play no part in this. Out of
    fold, the variance allows for training sets that overlap (Nadeau and Bengio 2003), as in cross-validation.
    """
    found = {name: _encoded(values, development.rows) for name, values in facts_of(task).items()}
    columns = {name: x for name, x in found.items() if x.shape[1]}
    if not columns or (fit := _fitted(task, development, columns)) is None:
        return None
    probabilities = _joined(fit)
    n_folds = {"val": len(development.folds), "test": 1}
    scores = {
        name: task.score(rows, probabilities[rows], n_folds=n_folds[name]).auc for name, rows in task.scored.items()
    }
    twin = Acquisition(tuple(columns), fit.setting, scores["val"], scores.get("test"))
    return replace(twin, by_fact=_alone(task, development, columns)) if twin.is_high else twin


def facts_of(task: Task) -> dict[str, list[str]]:
    """Return what is known of the readable images without their pixels: format, bytes, and every attribute."""
    table = task.table
    names = [path.split(FRAME_MARK)[0].lower() for path in compress(table.paths, task.readable)]
    sizes = ["" if size < 0 else str(np.log2(max(1, size))) for size in table.sizes[task.readable].tolist()]
    return {"format": [os.path.splitext(name)[1] for name in names], "bytes": sizes, **task.attributes()}


def _encoded(values: Sequence[str], learnt: Ints) -> npt.NDArray[np.float32]:
    """Return a fact as columns (n, k), by what the rows `learnt` have; k = 0 if it is the same for all of them."""
    texts = with_missing(values)
    numbers = numbers_of([texts[row] for row in learnt])
    columns: list[npt.NDArray[np.bool_] | Floats] = []
    if numbers is not None:
        known = numbers[~np.isnan(numbers)]
        own = np.array([np.nan if text == MISSING else _number(text) for text in texts])
        filled = np.where(np.isnan(own), np.median(known), own)
        columns = [filled, *(filled > edge for edge in np.unique(np.quantile(known, QUANTILES))), np.isnan(own)]
    else:
        counts = Counter(texts[row] for row in learnt)
        common = [value for value, n in counts.most_common(MOST_VALUES) if n >= FEWEST]
        columns = [np.array(texts, dtype=object) == value for value in common]
    kept = [column.astype(np.float32) for column in columns if np.ptp(column[learnt].astype(np.float64)) > 0]
    return np.stack(kept, axis=1) if kept else np.empty((len(texts), 0), np.float32)


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
