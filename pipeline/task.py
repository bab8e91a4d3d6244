"""What is to be learnt: a cached data set's embeddings, classes and splits, checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from features.cache import DatasetTable, EmbeddingCache, Embeddings
from features.errors import TrainingError
from pipeline.runs import SPLITS, DatasetFacts, UnreadableImage, class_numbers
from pipeline.splits import carve_validation, merged_groups, split

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What is to be told apart, on which images.

    Attributes
    ----------
    x : ndarray (n, 512) float32
        Embeddings of the readable images.
    y : ndarray (n,) int64
        Class numbers.
    groups : ndarray (n,) int64
        Images of the same patient, or of the same bytes, have the same number.
    splits : ndarray (n,) of "train", "val" or "test"
    names : tuple of str
        What the class numbers stand for.
    """

    table: DatasetTable
    readable: npt.NDArray[np.bool_]
    x: Embeddings
    y: Ints
    groups: Ints
    splits: npt.NDArray[np.str_]
    split_by: str
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    names: tuple[str, ...]

    @property
    def has_given_test(self) -> bool:
        """Tell whether the data set itself says which images are for the test."""
        return self.table.splits is not None and bool((self.splits == "test").any())

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits that heads are scored on: val, and test where there is one."""
        return tuple(name for name in ("val", "test") if (self.splits == name).any())

    def labels(self) -> list[str]:
        """Give the data set's own labels of the readable images."""
        return [self.table.labels[i] for i in np.flatnonzero(self.readable)]


def read_task(cache: EmbeddingCache, dataset: str | None, positive: Sequence[str], seed: int) -> Task:
    """Read a data set from the cache, and settle classes and splits.

    Parameters
    ----------
    cache : EmbeddingCache
    dataset : str or None
        Which of the cache's data sets; not needed where there is one.
    positive : sequence of str
        Labels that count as class 1; makes the task binary.
    seed : int
        Of the splits, where the data set has none.

    Raises
    ------
    HoarfrostError
        One of its children: the cache, labels or splits are not fit to train on.
    """
    table = cache.dataset(dataset)
    x, readable = cache.arrays(table)
    _check_embeddings(x, [table.paths[i] for i in np.flatnonzero(readable)], cache)
    labels = [table.labels[i] for i in np.flatnonzero(readable)]
    classes = tuple(sorted(set(labels), key=_label_order))
    positive_labels = _positive_labels(classes, tuple(normalize("NFC", label) for label in positive), table.name)
    y = class_numbers(labels, classes, positive_labels)
    names = _class_names(classes, positive_labels)
    groups = _groups(table, readable)
    splits, split_by = _splits(table, readable, y, groups, names, seed)
    task = Task(table, readable, x, y, groups, splits, split_by, classes, positive_labels, names)
    _check_splits(task)
    return task


def _check_embeddings(x: Embeddings, paths: Sequence[str], cache: EmbeddingCache) -> None:
    """Refuse NaN and infinity: standardisation would spread one image's over all."""
    broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(broken):
        raise TrainingError(
            f"{cache.path}: the embeddings of {len(broken)} of {len(paths)} images are not finite (first: "
            f"{paths[broken[0]]}). The weights {cache.header.weights} are probably damaged: extract with others."
        )


def _label_order(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers (10 after 9), and before texts."""
    number = label.isascii() and label.isdigit()
    return (not number, int(label) if number else 0, label)


def _positive_labels(classes: tuple[str, ...], positive: tuple[str, ...], dataset: str) -> tuple[str, ...] | None:
    if len(classes) < 2:
        raise TrainingError(
            f"The data set {dataset!r} has readable images of one class only ({', '.join(classes)}); a head tells at least "
            "two apart. Mend the unreadable images or add others, and extract again."
        )
    for label in positive:
        if label not in classes:
            raise TrainingError(
                f"--positive {label}: the data set {dataset!r} has no such label. It has: {', '.join(classes)}."
            )
    if set(positive) == set(classes):
        raise TrainingError(f"--positive names all labels ({', '.join(classes)}); leave at least one for class 0.")
    if positive:
        return tuple(label for label in classes if label in positive)
    return classes[1:] if len(classes) == 2 else None


def _class_names(classes: tuple[str, ...], positive: tuple[str, ...] | None) -> tuple[str, ...]:
    if positive is None:
        return classes
    return " + ".join(label for label in classes if label not in positive), " + ".join(positive)


def _groups(table: DatasetTable, readable: npt.NDArray[np.bool_]) -> Ints:
    """Join images of the same patient, where patients are known, and of the same bytes."""
    known = [[column[i] for i in np.flatnonzero(readable)] for column in (table.patients,) if column is not None]
    return merged_groups(table.rows[readable].tolist(), *known)


def _splits(
    table: DatasetTable, readable: npt.NDArray[np.bool_], y: Ints, groups: Ints, names: tuple[str, ...], seed: int
) -> tuple[npt.NDArray[np.str_], str]:
    """Take the data set's own splits, or make them by patient; the same bytes are never in two splits of ours."""
    if table.splits is None:
        return split(y, groups, names, seed=seed), "image" if table.patients is None else "patient"
    given = np.array([table.splits[i] for i in np.flatnonzero(readable)], dtype="<U5")
    train = given == "train"
    if not train.any():
        raise TrainingError(f"The data set {table.name!r} has no images in the split train.")
    if (given == "val").any():
        return given, "given"
    given[train] = carve_validation(y[train], groups[train], names, seed=seed)
    return given, "given, val from train"


def _check_splits(task: Task) -> None:
    """Refuse a split in which a class is missing: nothing could be learnt or scored there."""
    for name in ("train", *task.scored_splits):
        counts = np.bincount(task.y[task.splits == name], minlength=len(task.names))
        for label, count in zip(task.names, counts.tolist(), strict=True):
            if count < 2:
                all_counts = ", ".join(f"{n} {other}" for other, n in zip(task.names, counts.tolist(), strict=True))
                raise TrainingError(
                    f"The split {name} has {count} image(s) of the class {label!r}; at least 2 are needed to learn or "
                    f"score it (the split has {all_counts}). Add images, or change the data set's split column or folders."
                )


def dataset_facts(task: Task) -> DatasetFacts:
    """Describe the data set for the run's record."""
    table = task.table
    found = Counter(zip(task.splits.tolist(), task.labels(), strict=True))
    present = [name for name in SPLITS if (task.splits == name).any()]
    return DatasetFacts(
        name=table.name,
        source=table.source,
        classes=task.classes,
        positive=task.positive,
        split_by=task.split_by,
        n_images=len(table),
        n_patients=len(set(table.patients)) if table.patients is not None else None,
        counts={name: {label: found[name, label] for label in task.classes} for name in present},
        unreadable=tuple(UnreadableImage(table.paths[i], table.errors[i]) for i in np.flatnonzero(~task.readable)),
    )
