"""What a cache file holds: the names, types and limits of the format "hoarfrost-cache", version 1.

The cache and its parts have the same layout; README.md describes it for other programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.fingerprint import Fingerprint

FORMAT = "hoarfrost-cache"
FORMAT_VERSION = 1
DIM = 512
ROW_BYTES = DIM * 4
CHUNK_ROWS = 1024  # 2 MiB a chunk: large enough to stream, small enough that damage costs little
MAX_TEXT_BYTES = 1 << 24
MAX_CELL_BYTES = 1 << 15  # a path has at most 4,096 bytes on Linux

Keys = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Some images: keys (N, 32) uint8 and their embeddings (N, 512) float32."""

    keys: Keys
    embeddings: Embeddings


@dataclass(frozen=True)
class Header:
    """What a file says of all its embeddings.

    `weights` is the name that the weights were asked for by, `weights_origin` where they came
    from (see `features.fingerprint.weights_origin`), `compute` the compute path of the latest
    ("eager", "compiled", "openvino") that a resumed extraction goes on with. `weights_path` is where a checkpoint lay,
    absolute; empty where the weights were no file.
    """

    fingerprint: Fingerprint
    weights: str
    weights_origin: str = ""
    compute: str = ""
    weights_path: str = ""


@dataclass(frozen=True)
class DatasetTable:
    """A data set as the cache keeps it: columns of one entry an image.

    `rows` (n,) int64 points into the embeddings, -1 where the image could not be read, and then
    `errors` says why. `root` is where the files were, resolved: only there do size and time of a path
    tell anything. `sizes` and `mtimes_ns` (n,) int64 tell an unchanged file from a changed one.
    """

    name: str
    source: str
    paths: list[str]
    rows: Rows
    labels: list[str]
    errors: list[str]
    sizes: Rows
    mtimes_ns: Rows
    splits: list[str] | None = None
    patients: list[str] | None = None
    attributes: Mapping[str, list[str]] = field(default_factory=dict)
    created: str = ""
    root: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def same_as(self, other: "DatasetTable | None") -> bool:
        """Tell whether two tables say the same, whenever they were written."""
        return other is not None and _comparable(self) == _comparable(other)


def _comparable(table: DatasetTable) -> tuple[object, ...]:
    numbers = (table.rows.tolist(), table.sizes.tolist(), table.mtimes_ns.tolist())
    texts = (
        table.name,
        table.source,
        table.root,
        table.paths,
        table.labels,
        table.errors,
        table.splits,
        table.patients,
    )
    return (*numbers, *texts, dict(table.attributes))
