"""What a run keeps of its training: head files, and training curves."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace

import numpy as np

from hoarfrost.experiment.development import Development
from hoarfrost.experiment.results import Scored
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.validated import novelty_of, validated_of
from hoarfrost.experiment.variants import Variant
from hoarfrost.features.cache import EmbeddingCache, are_unseen
from hoarfrost.heads.files import SavedHead, SavedMember, head_bytes
from hoarfrost.heads.seen import NO_DIGESTS, Digests, digests_of
from hoarfrost.runs import Epoch


def head_files(
    task: Task,
    development: Development,
    scored: Scored,
    cache: EmbeddingCache,
    views: Sequence[str],
    *,
    with_digests: bool,
) -> dict[str, bytes]:
    """Return the content of each head file, by its name; `views` are those that the heads look at."""
    novelty, distances = novelty_of(task, development, views[0])
    header = replace(cache.header, views=tuple(views) if cache.header.views else ())
    seen = _seen(task, cache) if with_digests else NO_DIGESTS
    files = {}
    for name, variant in scored.variants.items():
        members = (
            SavedMember(one.head.spec, one.head.seed, one.head.fold, one.weight, one.head.module)
            for one in variant.members
        )
        head = SavedHead(
            name=name,
            members=tuple(members),
            names=task.names,
            is_multilabel=task.is_multilabel,
            header=header,
            per_patient=task.per_patient,
            validated=validated_of(task, scored.probabilities[name]),
            novelty=novelty,
            distances=distances,
            seen=seen,
        )
        files[f"{variant.slug}.safetensors"] = head_bytes(head)
    return files


def epochs_of(fitted: Mapping[str, Variant]) -> Iterator[Epoch]:
    """Yield the training curve of each variant and seed, the mean over its folds."""
    for name, variant in fitted.items():
        for seed in dict.fromkeys(one.head.seed for one in variant.members):
            histories = [one.head.history for one in variant.members if one.head.seed == seed]
            for number, of_folds in enumerate(zip(*histories, strict=False), start=1):
                values = np.mean([astuple(epoch) for epoch in of_folds], axis=0).tolist()
                yield Epoch(name, seed, number, *values)


def _seen(task: Task, cache: EmbeddingCache) -> Digests:
    """Return the digests of all images but those of the test split, ascending; of images whose bytes are known."""
    keys = cache.keys(task.table.rows[task.readable][task.splits != "test"])
    return np.unique(digests_of(key.tobytes() for key in keys[~are_unseen(keys)]))
