"""What a run records about its images: the dataset and its splits, and where the embeddings came from."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import compress

import numpy as np

from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.cohort import Cohort, characteristics, cohort_groups, flow_of
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.features.cache import EmbeddingCache, JoinedCache, are_unseen, library_versions
from hoarfrost.features.datasets.hints import SOME, patients_hint
from hoarfrost.runs import NO_TEST_SPLIT, SPLITS, CacheFacts, DatasetFacts, EmbeddingFacts, Predictions, UnreadableImage

MOST_CLASSES = 10  # with columns of their own in table 1


def embedding_facts(task: ScoredTask, cache: EmbeddingCache, views: Sequence[str]) -> EmbeddingFacts:
    """Return what the cache records about its embeddings, the views that heads look at, and the digest of these rows."""
    rows = task.table.rows[task.readable]
    used = {
        "digest": cache.digest(cache.view_rows(rows, views).ravel()),
        "views": tuple(views) if cache.header.views else (),
        "several": tuple(map(_cache_facts, cache.parts)) if isinstance(cache, JoinedCache) else (),
        "n_unseen": int(are_unseen(cache.keys(rows)).sum()),
    }
    return EmbeddingFacts(**{**vars(_cache_facts(cache)), **used})


def _cache_facts(cache: EmbeddingCache) -> CacheFacts:
    header = cache.header
    return CacheFacts(
        cache=str(cache.path),
        fingerprint=header.fingerprint.digest,
        backbone=header.fingerprint.backbone,
        weights=header.weights,
        weights_sha256=header.fingerprint.weights_sha256,
        preprocessing=dict(header.fingerprint.preprocessing),
        precision=header.fingerprint.precision,
        weights_origin=header.weights_origin,
        weights_path=header.weights_path,
        views=header.views[:1],
        layers=header.fingerprint.layers,
        drift=header.drift,
    )


def dataset_facts(task: ScoredTask) -> DatasetFacts:
    """Describe the dataset for the run's record."""
    table = task.table
    present = [name for name in SPLITS if (task.splits == name).any()]
    sizes = Counter(task.splits.tolist())
    return DatasetFacts(
        name=table.name,
        source=table.source,
        classes=task.classes,
        positive=task.positive,
        split_by=task.split_by,
        n_images=len(table),
        n_patients=len(set(table.patients)) if table.patients is not None else None,
        counts={name: _counts(task, name) for name in present},
        n_split={name: sizes[name] for name in present},
        is_multilabel=task.is_multilabel,
        no_test_split=None if "test" in present else NO_TEST_SPLIT,
        patients_hint=_patients_hint(task),
        cohort=_cohort(task, present),
        unreadable=tuple(UnreadableImage(table.paths[i], table.errors[i]) for i in np.flatnonzero(~task.readable)),
    )


def _cohort(task: ScoredTask, present: Sequence[str]) -> Cohort:
    """Describe the images by split and class; of many classes, by split alone."""
    labels = task.labels()
    column = np.array(labels)
    has = {name: task.y[:, i] == 1 if task.is_multilabel else column == name for i, name in enumerate(task.classes)}
    splits = task.splits.tolist()
    shown = has if len(has) <= MOST_CLASSES else {}
    groups, members = cohort_groups(splits, shown, present, task.patients)
    contents = task.table.rows[task.readable].tolist()
    flow = flow_of(len(task.table), contents, splits, present, task.near_groups)
    return Cohort(flow, groups, characteristics(task.attributes(), members))


def _patients_hint(task: ScoredTask) -> str:
    """Return that the paths suggest patients, if none are known; empty if they do not."""
    hint = "" if task.table.patients is not None else patients_hint(task.table.paths[:SOME], task.classes)
    return f"{hint[0].upper()}{hint[1:]} Pass it to `extract`, then train again." if hint else ""


def _counts(task: ScoredTask, split: str) -> dict[str, int]:
    """Count a split's images of each class or, with several labels per image, of each label."""
    here = task.splits == split
    if task.is_multilabel:
        return {label: int((task.y[here, number] == 1).sum()) for number, label in enumerate(task.classes)}
    found = Counter(label for label, is_here in zip(task.labels(), here.tolist(), strict=True) if is_here)
    return {label: found[label] for label in task.classes}


def versions_used() -> dict[str, str]:
    """Return the versions of Python and of the libraries that scores depend on."""
    statistics = {name: version(name) for name in ("scikit-learn", "scipy")}
    return {"python": platform.python_version(), **library_versions(), **statistics}


def machine_used(n_threads: int | None = None) -> str:
    """Return the machine in a few words, with the number of threads if heads or embeddings were computed on them."""
    machine = f"{platform.system()} {platform.machine()}"
    return machine if n_threads is None else f"{machine}, {n_threads} threads"


def predictions_of(task: ScoredTask, probabilities: Mapping[str, Floats]) -> Predictions:
    """Return the probabilities (n, C) of each head with the images that they are of."""
    names, number = np.unique(task.splits, return_inverse=True)
    patients = task.table.patients
    return Predictions(
        paths=tuple(compress(task.table.paths, task.readable)),
        patients=("",) * len(task.y) if patients is None else tuple(compress(patients, task.readable)),
        splits=tuple(names.astype(object)[number]),  # three texts, not one an image
        labels=tuple(task.labels()),
        probabilities=probabilities,
        truth=task.y if task.is_multilabel else None,
    )
