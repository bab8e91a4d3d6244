"""Embeddings of eva (kaiko.ai): a `manifest.csv` and one `.pt` file per sample.

Format: eva's `ClassificationEmbeddingsWriter` writes a CSV with the columns `origin` (the sample), `embeddings` (its file,
relative to the CSV), `target` and `split`, and further columns of metadata. A file holds a tensor (D,) or (1, D), or a list
of tensors, or (n, D), of the n patches of a slide.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import MEAN_OF_PATCHES, Content, check_dim, require_room

MANIFEST = "manifest.csv"
REQUIRED = ("origin", "embeddings")


def read_eva(path: Path) -> Content:
    """Read a manifest and the files that it lists. No code in them is run; the mean over patches is a slide's embedding.

    Raises
    ------
    DatasetError
        If the manifest or a file is missing or damaged, or dimensions differ.
    """
    columns = _manifest(path)
    root = path.resolve().parent
    rows, poolings = list[npt.NDArray[np.float32]](), set[str]()
    for place in columns["embeddings"]:
        file = (root / place).resolve()
        if not file.is_relative_to(root):
            raise DatasetError(
                f"{path}: {place} is outside of the manifest's folder, so it is not read. Move it there."
            )
        row, pooling = _sample(file)
        if rows and len(row) != len(rows[0]):
            raise DatasetError(
                f"{file}: an embedding of {len(row)} numbers; the first file has {len(rows[0])}, so they are not of "
                "one encoder. Import the files of each encoder into a cache of its own."
            )
        rows.append(row)
        poolings.add(pooling)
    texts = {"label" if name == "target" else name: cells for name, cells in columns.items() if name != "embeddings"}
    return Content(
        texts, {"embeddings": np.stack(rows)}, pooling=MEAN_OF_PATCHES if MEAN_OF_PATCHES in poolings else ""
    )


def _manifest(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: the manifest cannot be read: {error}. Copy it again.") from error
    if not rows:
        raise DatasetError(f"{path}: the manifest lists no embeddings: it is empty. Export it again.")
    missing = [name for name in REQUIRED if name not in rows[0]]
    if missing:
        raise DatasetError(
            f"{path}: not a manifest of eva: the column {missing[0]!r} is missing. Expected: origin, embeddings, "
            "target, split."
        )
    if any(None in row or None in row.values() for row in rows):
        raise DatasetError(f"{path}: a line has more or fewer fields than the header. Export it again.")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sample(path: Path) -> tuple[npt.NDArray[np.float32], str]:
    """Return one sample's embedding (D,), and how it was pooled."""
    import torch

    try:
        require_room(str(path), os.stat(path).st_size, "a tensor")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except DatasetError:
        raise
    except Exception as error:  # damaged or hostile files raise nearly anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(
            f"{path}: not a readable file of tensors alone: {first}. Files with other objects could run code, so they "
            "are not read. Export it again."
        ) from error
    tensors: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    if not tensors or not all(isinstance(one, torch.Tensor) and one.is_floating_point() for one in tensors):
        raise DatasetError(f"{path}: expected a tensor of floating-point numbers, or a list of them. Export it again.")
    dims = {one.shape[-1] if one.ndim else 0 for one in tensors}
    check_dim(str(path), max(dims))
    if len(dims) > 1:
        raise DatasetError(f"{path}: tensors of different dimensions ({min(dims)} and {max(dims)}). Export it again.")
    patches = torch.cat([one.reshape(-1, max(dims)) for one in tensors])
    if len(patches) == 1:
        return patches[0].float().numpy(), ""
    return patches.double().mean(dim=0).float().numpy(), MEAN_OF_PATCHES
