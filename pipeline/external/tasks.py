"""A cohort as a task: its labels by the classes that a head knows. Its images are the test split, and nothing is learnt."""

from collections import Counter
from dataclasses import dataclass
from itertools import compress
from unicodedata import normalize

import numpy as np

from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.experiment.classes import class_names, label_matrix
from hoarfrost.experiment.splits import EXTERNAL, merged_groups
from hoarfrost.experiment.task import Task, files_of, mostly_known, read_looks
from hoarfrost.experiment.views import AUTO
from hoarfrost.features.cache import DatasetTable, EmbeddingCache
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.errors import DatasetError, TrainingError
from hoarfrost.features.origins import parts_of
from hoarfrost.heads.files import SavedHead
from hoarfrost.runs import RunHeads, class_numbers

JOINED = " + "  # of labels that count as one class
SHOWN = 5


@dataclass(frozen=True)
class KnownLabels:
    """The labels that a head was trained with: `positive` count as class 1; None with more than two classes."""

    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    names: tuple[str, ...]
    is_multilabel: bool

    @classmethod
    def of(cls, head: SavedHead, heads: RunHeads | None) -> "KnownLabels":
        """Return those of a head; without its run from the names of its classes."""
        if heads is not None:
            dataset = heads.config.dataset
            return cls(dataset.classes, dataset.positive, head.names, head.is_multilabel)
        if len(head.names) != 2 or head.is_multilabel:
            return cls(head.names, None, head.names, head.is_multilabel)
        negative, positive = (tuple(name.split(JOINED)) for name in head.names)
        return cls((*negative, *positive), positive, class_names((*negative, *positive), positive), is_multilabel=False)

    def check(self, dataset: Dataset) -> None:
        """Refuse a cohort without labels, or with labels that the head does not know, before it is embedded.

        Raises
        ------
        DatasetError
        """
        if not len(dataset):
            raise DatasetError(f"{dataset.source}: no images listed. Check that this is the right path.")
        if self.is_multilabel:
            missing = [name for name in self.names if name not in dataset.attributes]
            if missing:
                raise DatasetError(
                    f"{dataset.source}: the column {missing[0]!r} is missing. The head predicts the labels "
                    f"{', '.join(self.names)}: each needs a column of 1, 0, or empty for unknown."
                )
            return
        counts = Counter({normalize("NFC", label): n for label, n in dataset.labels.counts().items()})
        if counts[""]:
            raise DatasetError(
                f"{dataset.source}: {counts['']:,} of {len(dataset):,} images have no label, and only labelled images can be "
                "evaluated. Add the labels, or remove these images. `hoarfrost predict` needs no labels."
            )
        unknown = [f"{label} ({n:,} images)" for label, n in counts.most_common() if label not in self.classes]
        if unknown:
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            raise DatasetError(
                f"{dataset.source}: the head does not know the labels {', '.join(unknown[:SHOWN])}{more}. It was trained "
                f"with {', '.join(self.classes)}. Rename them with --label-map FILE.csv (columns label,name), or leave these "
                "images out with --exclude."
            )


def cohort_task(cache: EmbeddingCache, table: DatasetTable, head: SavedHead, labels: KnownLabels) -> Task:
    """Return a cohort that is in a cache as a task, with a head's own classes and views, all in the test split.

    Raises
    ------
    HoarfrostError
        If the labels or the embeddings cannot be used, or the head scores patients and these are unknown.
    """
    readable = table.rows >= 0
    if labels.is_multilabel:
        y = label_matrix(table, readable, labels.names, ())[1]
    else:
        y = class_numbers(list(compress(table.labels, readable)), labels.classes, labels.positive)
    if head.per_patient is not None and table.patients is None:
        raise TrainingError(
            f"{table.source}: the head scores patients ({head.per_patient} over their images), but the patients of the "
            "cohort are unknown. Add a patient column, or name it with --patient-column."
        )
    patients = None if table.patients is None else patient_numbers(list(compress(table.patients, readable)))
    of_several = bool(parts_of(head.header.fingerprint.preprocessing))  # each encoder's first view
    files = files_of(cache.keys(table.rows[readable]))
    looks = read_looks(cache, table, AUTO if of_several else ",".join(head.views))
    return Task(
        table=table, readable=readable, looks=looks, y=y,
        groups=merged_groups(files, *([] if patients is None else [patients])),
        splits=np.full(len(y), "test"), split_by=EXTERNAL,
        classes=labels.classes, positive=labels.positive, names=labels.names,
        patients=patients, identities=np.zeros(len(y), np.uint64), per_patient=head.per_patient,
        encoder=cache.header.fingerprint.encoder,
        facts=mostly_known(cache.facts(table.rows[readable])),
        is_region=cache.header.is_of_regions, files=files,
    )  # fmt: skip
