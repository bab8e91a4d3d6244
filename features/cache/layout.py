"""What a cache file holds: the names, types and limits of the format "hoarfrost-cache", version 1.

The cache and its parts have the same layout; docs/cache-format.md describes it for other programs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.texts import Texts, lists_to_texts
from hoarfrost.features.fingerprint import KEY_BYTES, Fingerprint

FORMAT = "hoarfrost-cache"
INDEX_FORMAT = "hoarfrost-cache-index"  # of a cache in shards
FORMAT_VERSION = 1
CHUNK_ROWS = 1024  # at most
CHUNK_BYTES = 1 << 21  # of embeddings: large enough to stream, small enough that damage costs little
SHARD_NAME_BYTES = 40
SHARD_BYTES = 64_000_000_000  # where nothing else is asked for
MAX_DIM = 1 << 16
MAX_TEXT_BYTES = 1 << 24
MAX_CELL_BYTES = 1 << 15  # a path has at most 4,096 bytes on Linux

Keys = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Some images: keys (N, 32) uint8 and their embeddings (N, D) float32."""

    keys: Keys
    embeddings: Embeddings


class Shard(NamedTuple):
    """One of the files that a large cache's images are in.

    `name` is that of the file in the folder of shards, `content` (32 bytes) the SHA-256 of its keys and of its rows'
    checksums: what tells it from any other, and from itself at another time.
    """

    name: str
    n_images: int
    content: bytes


class SourceFile(NamedTuple):
    """Images that are on the disk already: how many, how to read them in order, and the shard that they are."""

    n_images: int
    blocks: Callable[[], Iterable[Block]]
    shard: Shard | None = None


def row_bytes(dim: int) -> int:
    """Return how many bytes an embedding of so many numbers takes."""
    return 4 * dim


def rows_per_chunk(dim: int) -> int:
    """Return how many embeddings a chunk holds: a power of two, so that chunks of any dimension end where 1,024 rows do."""
    return min(CHUNK_ROWS, 1 << (max(1, CHUNK_BYTES // row_bytes(dim)).bit_length() - 1))


def rows_per_shard(shard_bytes: int, dim: int) -> int:
    """Return how many images a file of at most so many bytes holds: whole chunks, so that shards are read as one file is."""
    n_rows = rows_per_chunk(dim)
    per_chunk = n_rows * (row_bytes(dim) + KEY_BYTES + 4) + 64  # the row's checksum; the chunk's, and its place
    beside = 1 << 19  # HDF5's own, and the last chunk of the rows' checksums
    return n_rows * max(1, (shard_bytes - beside) // per_chunk)


@dataclass(frozen=True)
class Header:
    """What a file says of all its embeddings.

    `dim` is how many numbers an embedding has, `weights` the name that the weights were asked for by, `weights_origin`
    where they came from (see `hoarfrost.features.fingerprint.weights_origin`), `compute` the compute path of the latest
    ("eager", "compiled", "openvino") that a resumed extraction goes on with. `weights_path` is where a checkpoint lay,
    absolute; empty where the weights were no file.
    """

    fingerprint: Fingerprint
    dim: int
    weights: str
    weights_origin: str = ""
    compute: str = ""
    weights_path: str = ""


@dataclass(frozen=True)
class DatasetTable:
    """A dataset as the cache keeps it: columns of one entry an image.

    `rows` (n,) int64 points into the embeddings, -1 where the image could not be read, and then
    `errors` says why. `root` is where the files were, resolved: only there do size and time of a path
    tell anything. `sizes` and `mtimes_ns` (n,) int64 tell an unchanged file from a changed one. Columns of
    texts may be given as lists; they are kept as `Texts`.
    """

    name: str
    source: str
    paths: Texts
    rows: Rows
    labels: Texts
    errors: Texts
    sizes: Rows
    mtimes_ns: Rows
    splits: Texts | None = None
    patients: Texts | None = None
    attributes: Mapping[str, Texts] = field(default_factory=dict)
    created: str = ""
    root: str = ""

    def __post_init__(self) -> None:
        lists_to_texts(self)

    def __len__(self) -> int:
        return len(self.paths)

    def columns(self) -> Iterator[Texts]:
        """Yield the columns of texts, the optional ones too."""
        yield from (self.paths, self.labels, self.errors)
        yield from (column for column in (self.splits, self.patients) if column is not None)
        yield from self.attributes.values()

    def same_as(self, other: "DatasetTable | None") -> bool:
        """Return whether two tables say the same, whenever they were written."""
        if other is None or len(self) != len(other):
            return False
        numbers = ((self.rows, other.rows), (self.sizes, other.sizes), (self.mtimes_ns, other.mtimes_ns))
        return all(np.array_equal(mine, theirs) for mine, theirs in numbers) and _texts(self) == _texts(other)


def _texts(table: DatasetTable) -> tuple[object, ...]:
    names = (table.name, table.source, table.root)
    return (*names, table.paths, table.labels, table.errors, table.splits, table.patients, dict(table.attributes))


class FileTable(NamedTuple):
    """What a file of the cache knows of the dataset's files: where each was, its size and time, and its embedding's row."""

    paths: Texts
    sizes: Rows
    mtimes_ns: Rows
    rows: Rows
