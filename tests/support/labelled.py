"""Synthetic caches whose embeddings depend on the labels, so that heads have something to learn."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache import CacheWriter, DatasetTable, EmbeddedFile
from hoarfrost.features.facts import ImageFacts
from hoarfrost.features.fingerprint import bytes_key
from tests.support.caches import HEADER


def embeddings_of(labels: Sequence[str], *, seed: int = 0, distance: float = 0.15) -> npt.NDArray[np.float32]:
    """Draw embeddings (n, 512) float32 around one centre a label."""
    rng = np.random.default_rng(seed)
    centres = {label: rng.normal(size=HEADER.dim) for label in sorted(set(labels))}
    noise = rng.normal(size=(len(labels), HEADER.dim))
    return (noise + distance * np.stack([centres[label] for label in labels])).astype(np.float32)


def write_labelled_cache(
    path: Path,
    labels: Sequence[str],
    *,
    name: str = "phantoms",
    source: str = "phantoms",
    splits: list[str] | None = None,
    patients: list[str] | None = None,
    unreadable: Collection[int] = (),
    contents: Sequence[int] | None = None,
    embeddings: npt.NDArray[np.float32] | None = None,
    attributes: Mapping[str, list[str]] | None = None,
    paths: Sequence[str] | None = None,
    views: Mapping[str, npt.NDArray[np.float32]] | None = None,
    lacking: Mapping[str, Collection[int]] | None = None,
    layers: Sequence[int] = (),
    sizes: Sequence[int] | None = None,
    facts: Sequence[ImageFacts | None] | None = None,
) -> Path:
    """Write a cache, or one more dataset into it. Images of equal `contents` have the same bytes.

    `views` replaces the embeddings by those of several views, which some images may lack.
    """
    n = len(labels)
    x = embeddings if embeddings is not None else embeddings_of(labels)
    keys = [bytes_key(f"{name} {content}".encode()) for content in contents or range(n)]
    paths = list(paths or [f"{label}/{i}.png" for i, label in enumerate(labels)])
    readable = [i for i in range(n) if i not in unreadable]
    first = {keys[i]: i for i in reversed(readable)}  # the same bytes are embedded once
    embedded = sorted(first.values())
    views = views or {HEADER.own_view: x}
    fingerprint = replace(HEADER.fingerprint, layers=tuple(layers))
    dim = HEADER.fingerprint.encoder.dim_of(layers)
    header = replace(HEADER, fingerprint=fingerprint, dim=dim).of_views(views)
    with CacheWriter(path, header, name) as writer:
        for view, of_view in views.items():
            there = [i for i in embedded if i not in (lacking or {}).get(view, ())]
            of_images = facts or [None] * n
            files = [EmbeddedFile(paths[i], 1, 1, keys[i] + header.code_of(view), of_images[i]) for i in there]
            writer.append(files, of_view[there])
        table = DatasetTable(
            name=name,
            source=source,
            paths=paths,
            rows=np.array([-1 if i in unreadable else 0 for i in range(n)]),
            labels=list(labels),
            errors=[f"truncated after {i} bytes" if i in unreadable else "" for i in range(n)],
            sizes=np.ones(n, np.int64) if sizes is None else np.array(sizes, np.int64),
            mtimes_ns=np.ones(n, np.int64),
            splits=splits,
            patients=patients,
            attributes=attributes or {},
        )
        writer.finish(table, np.frombuffer(b"".join(keys), np.uint8).reshape(n, -1))
    return path


def mixed(counts: dict[str, int], *, seed: int = 0) -> list[str]:
    """List so many of each label, in a seeded order."""
    labels = np.repeat(list(counts), list(counts.values()))
    return [str(label) for label in np.random.default_rng(seed).permutation(labels)]


NOT_UTF8 = os.fsdecode("gr\xfcn".encode("latin-1"))
