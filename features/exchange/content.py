"""What a file of embeddings holds, whatever its format: columns of one entry per sample."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache import Embeddings
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.processors import usable_memory

MAX_DIM = 1 << 16  # as in a cache
MEAN_OF_PATCHES = "mean over patches"
EMBEDDING_NAMES = ("embeddings", "embedding", "features", "feats", "x")
ID_NAMES = (
    "paths", "path", "ids", "id", "origin", "image", "image_id", "filename", "file_name", "file", "slide_id", "slide", "name",
    "index",
)  # fmt: skip
_NUMBERED = re.compile(r"(.*?)(\d+)")


@dataclass(frozen=True)
class Content:
    """Columns of n samples.

    Attributes
    ----------
    texts : mapping of names to n texts
    numbers : mapping of names to ndarray (n,) int64
    arrays : mapping of names to ndarray (n, D) float32
    metadata : str
        What this program wrote of itself (JSON); empty in files of other programs.
    pooling : str
        How several embeddings of a sample became one; empty if each sample has one.
    """

    texts: Mapping[str, Sequence[str]]
    arrays: Mapping[str, Embeddings]
    numbers: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    metadata: str = ""
    pooling: str = ""


@dataclass(frozen=True)
class Samples:
    """Embeddings (n, D) float32 of n samples, their names in the file, and how they were pooled."""

    ids: Sequence[str]
    embeddings: Embeddings
    pooling: str


def samples_of(source: str, content: Content) -> Samples:
    """Return the embeddings of a file with the samples' names.

    Raises
    ------
    DatasetError
        If there are no embeddings or no names, or their numbers differ, or a name appears twice.
    """
    name = _first(EMBEDDING_NAMES, content.arrays) or (next(iter(content.arrays)) if len(content.arrays) == 1 else None)
    if name is None:
        found = ", ".join(content.arrays) or "none"
        raise DatasetError(
            f"{source}: no embeddings. Expected floating-point numbers of the shape (n, D) under one of the names "
            f"{', '.join(EMBEDDING_NAMES)}; such arrays in the file: {found}. Rename the array, or export it again."
        )
    embeddings, id_name = content.arrays[name], _first(ID_NAMES, content.texts)
    if id_name is None:
        raise DatasetError(
            f"{source}: the samples have no names, so their rows cannot be matched with the dataset. Add a column of "
            f"paths or ids under one of the names {', '.join(ID_NAMES)}, one text per embedding."
        )
    ids = list(content.texts[id_name])
    if len(ids) != len(embeddings):
        raise DatasetError(
            f"{source}: {len(embeddings):,} {name} but {len(ids):,} {id_name}. Export the file again: each embedding "
            "needs one name."
        )
    if not ids:
        raise DatasetError(f"{source}: the file has no embeddings: it is empty. Export it again.")
    check_dim(source, embeddings.shape[1])
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise DatasetError(
                f"{source}: {one!r} appears more than once in {id_name}, so it is not known which embedding counts. Keep one "
                "row per image."
            )
        seen.add(one)
    return Samples(ids, embeddings, content.pooling)


def _first(names: Sequence[str], there: Mapping[str, object]) -> str | None:
    """Return the first of some names that is there, in any case."""
    lower = {name.lower(): name for name in reversed([*there])}
    return next((lower[name] for name in names if name in lower), None)


def check_dim(source: str, dim: int) -> None:
    """Raise DatasetError for embeddings that a cache cannot hold."""
    if not 0 < dim <= MAX_DIM:
        raise DatasetError(f"{source}: its embeddings have {dim} numbers; a cache holds 1 to {MAX_DIM:,}.")


def require_room(source: str, n_bytes: float, declared: str) -> None:
    """Raise DatasetError for a file that declares more than this machine's memory."""
    if n_bytes > usable_memory():
        raise DatasetError(
            f"{source}: it declares {declared}, {n_bytes / 1e9:,.1f} GB, which is more than the memory of this "
            "machine. If that is wrong, the file is damaged; else split it, and import the parts one after another."
        )


def as_embeddings(source: str, name: str, values: npt.NDArray[np.generic]) -> Embeddings:
    """Return floating-point values (n, D) as float32.

    Raises
    ------
    DatasetError
        If they have another type or shape.
    """
    if values.dtype.kind != "f" or values.ndim != 2:
        raise DatasetError(
            f"{source}: {name} is {values.dtype} of the shape {values.shape}; expected floating-point numbers of the shape "
            "(n, D)."
        )
    with np.errstate(over="ignore"):  # too large for float32: infinity, for which the sample is skipped
        return np.ascontiguousarray(values, np.float32)


def numbered(names: Sequence[str]) -> list[str]:
    """Return the longest list of names that count from 0 or 1 after the same beginning: "feature_0" to "feature_511"."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(int(match[2]), name)
    groups = [
        [group[number] for number in sorted(group)]
        for group in found.values()
        if min(group) in {0, 1} and max(group) - min(group) + 1 == len(group)
    ]
    return max(groups, key=len, default=[])
