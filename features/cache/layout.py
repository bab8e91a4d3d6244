"""What a cache file holds: the names, types and limits of the format "hoarfrost-cache", versions 1 and 2.

The cache and its parts have the same layout; docs/cache-format.md describes it for other programs.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.texts import Texts, lists_to_texts
from hoarfrost.features.decoding.views import shows_region
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.facts import NUMBERS, Facts
from hoarfrost.features.fingerprint import FILE_BYTES, KEY_BYTES, Fingerprint
from hoarfrost.features.origins import REGION

FORMAT = "hoarfrost-cache"
INDEX_FORMAT = "hoarfrost-cache-index"  # the index of a cache in shards
FORMAT_VERSION = 2  # the newest
CHUNK_ROWS = 1024  # at most
CHUNK_BYTES = 1 << 21  # of embeddings: large enough to stream, small enough that damage costs little
SHARD_NAME_BYTES = 40
SHARD_BYTES = 64_000_000_000  # by default
MAX_DIM = 1 << 16
VIEW_BYTES = 8  # of a row's key in version 2: they follow the image's key
ENCODERS_OWN = bytes(VIEW_BYTES)  # the code of the view that version 1 has alone
UNSEEN = b"imported"  # the end of the key of an image whose bytes this program has not seen
SECONDS = "seconds_per_image"  # an attribute of a dataset, which older files lack
MAX_TEXT_BYTES = 1 << 24
MAX_CELL_BYTES = 1 << 15  # a path has at most 4,096 bytes on Linux

Keys = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Checksums = npt.NDArray[np.uint32]


def joined_keys(arrays: Iterable[Keys]) -> Keys:
    """Return all keys as one array, (N, K) uint8; an empty one if there are no arrays."""
    found = list(arrays)
    return np.concatenate(found) if found else np.empty((0, KEY_BYTES), np.uint8)


def view_code(name: str) -> bytes:
    """Return what stands for a view in rows' keys, unless it is the encoder's own: the start of its name's SHA-256."""
    return sha256(name.encode()).digest()[:VIEW_BYTES]


def row_keys(keys: Keys, code: bytes) -> Keys:
    """Return the keys (n, 40) uint8 of rows: those of images (n, 32) uint8, each followed by the code of a view."""
    return np.concatenate([keys, np.broadcast_to(np.frombuffer(code, np.uint8), (len(keys), VIEW_BYTES))], axis=1)


def image_keys(keys: Keys) -> Keys:
    """Return the keys (n, 32) uint8 of the images that rows are of."""
    return keys[:, :KEY_BYTES]


def file_keys(keys: Keys) -> Keys:
    """Return the part (n, 24) uint8 of images' keys that two regions of one file have in common."""
    return keys[:, :FILE_BYTES]


def unseen_key(path: str, embedding: Embeddings) -> bytes:
    """Return the key of an image whose bytes are not here, 32 bytes: by its path and its imported embedding (D,)."""
    digest = sha256(path.encode("utf-8", "surrogateescape") + b"\n" + embedding.tobytes()).digest()
    return digest[: KEY_BYTES - len(UNSEEN)] + UNSEEN  # at the end: rows are found by a key's first bytes


def are_unseen(keys: Keys) -> Mask:
    """Return which images' keys (n, 32) uint8 are not of their bytes, (n,) bool."""
    found: Mask = (keys[:, KEY_BYTES - len(UNSEEN) :] == np.frombuffer(UNSEEN, np.uint8)).all(axis=1)
    return found


class Block(NamedTuple):
    """Some embeddings: the keys of their rows (N, K) uint8, their numbers (N, D) float32, and their images' facts.

    In version 1 a row's key is its image's, K = 32. In version 2 the code of its view follows, K = 40. `facts` is None if
    none are known.
    """

    keys: Keys
    embeddings: Embeddings
    facts: Facts | None = None

    def take(self, rows: slice | Mask) -> "Block":
        """Return some of the images."""
        return Block(self.keys[rows], self.embeddings[rows], None if self.facts is None else self.facts.take(rows))

    def followed_by(self, other: "Block") -> "Block":
        """Return the images of both."""
        facts = None
        if self.facts is not None or other.facts is not None:
            facts = Facts.joined(one.facts or Facts.unknown(len(one.keys)) for one in (self, other))
        embeddings = np.concatenate([self.embeddings, other.embeddings])
        return Block(np.concatenate([self.keys, other.keys]), embeddings, facts)

    def checksums(self) -> Checksums:
        """Return the CRC-32 of each key with its embedding, (N,) uint32: this detects rows in another's place, too.

        It covers the image's key, the embedding, and the view's code. That of the encoder's own view is left out, so that
        a row has the same checksum in both versions.
        """
        images, codes = np.ascontiguousarray(image_keys(self.keys)), np.ascontiguousarray(self.keys[:, KEY_BYTES:])
        pairs = zip(images, np.ascontiguousarray(self.embeddings), strict=True)
        sums = np.fromiter((zlib.crc32(row, zlib.crc32(key)) for key, row in pairs), np.uint32, len(self.keys))
        for place in np.flatnonzero(codes.any(axis=1)).tolist():
            sums[place] = zlib.crc32(codes[place], int(sums[place]))
        return sums


class Shard(NamedTuple):
    """One of the files that hold a large cache's images.

    `name` is the file's name in the folder of shards. `content` (32 bytes) is the SHA-256 of its keys and its rows'
    checksums: it distinguishes a shard from all others, and from its own earlier versions.
    """

    name: str
    n_images: int
    content: bytes


class SourceFile(NamedTuple):
    """Images on the disk: how many, how to read them in order, and the shard that consists of them, if one does."""

    n_images: int
    blocks: Callable[[], Iterable[Block]]
    shard: Shard | None = None


def row_bytes(dim: int) -> int:
    """Return the number of bytes of an embedding of `dim` numbers."""
    return 4 * dim


def rows_per_chunk(dim: int) -> int:
    """Return how many embeddings a chunk holds: a power of two, so that one ends at every 1,024th row."""
    return min(CHUNK_ROWS, 1 << (max(1, CHUNK_BYTES // row_bytes(dim)).bit_length() - 1))


def rows_per_shard(shard_bytes: int, dim: int, key_bytes: int = KEY_BYTES) -> int:
    """Return how many images a file of at most `shard_bytes` holds: whole chunks, so that shards read like one file."""
    n_rows = rows_per_chunk(dim)
    per_row = row_bytes(dim) + key_bytes + NUMBERS.itemsize + 4  # the last for its checksum
    per_chunk = n_rows * per_row + 64  # its checksum, and its place
    beside = 1 << 19  # HDF5's own, the last chunk of the rows' checksums, and the kinds of headers
    return n_rows * max(1, (shard_bytes - beside) // per_chunk)


@dataclass(frozen=True)
class Header:
    """What all embeddings of a file share.

    `dim` is how many numbers an embedding has, `weights` the value of --weights, `weights_origin` where the weights came
    from (see `hoarfrost.features.fingerprint.weights_origin`), `compute` the compute path of the latest embeddings
    ("eager", "compiled", "openvino"), which a resumed extraction keeps. `weights_path` is the absolute path of the
    checkpoint, empty if the weights were not a file. `views` are the names of the views that embeddings are of, the
    preferred one first; empty for the encoder's own view alone, which is what version 1 of the format holds. `drift` is
    how far 8-bit integers are from float32, where that was measured.
    """

    fingerprint: Fingerprint
    dim: int
    weights: str
    weights_origin: str = ""
    compute: str = ""
    weights_path: str = ""
    views: tuple[str, ...] = ()
    drift: Drift | None = None

    @property
    def format_version(self) -> int:
        """The version of the format that holds such embeddings."""
        return 2 if self.views else 1

    @property
    def key_bytes(self) -> int:
        """The length of a row's key."""
        return KEY_BYTES + (VIEW_BYTES if self.views else 0)

    @property
    def own_view(self) -> str:
        """The name of the encoder's own view: the size that the fingerprint's preprocessing describes."""
        return str(self.fingerprint.preprocessing.get("resize", ["whole"])[0])

    @property
    def view_names(self) -> tuple[str, ...]:
        """The names of all views, the preferred one first."""
        return self.views or (self.own_view,)

    @property
    def region_views(self) -> tuple[str, ...]:
        """The names of the views that show images' regions, where others show whole images."""
        return tuple(name for name in self.views if shows_region(name))

    @property
    def is_of_regions(self) -> bool:
        """Whether each image is a region of a file's, in all views: its key and its facts are the region's."""
        return REGION in self.fingerprint.preprocessing and not self.region_views

    def code_of(self, view: str) -> bytes:
        """Return what stands for a view in rows' keys; nothing in version 1."""
        if not self.views:
            return b""
        return ENCODERS_OWN if view == self.own_view else view_code(view)

    def with_views(self, views: Iterable[str]) -> "Header":
        """Return the header of a file that has further views too."""
        return self.of_views([*self.view_names, *views])

    def of_views(self, views: Iterable[str]) -> "Header":
        """Return the header of a file of these views; of version 1 if that can hold them, unless this is of version 2."""
        names = tuple(dict.fromkeys(views))
        is_first_version = names == (self.own_view,) and not self.fingerprint.layers
        return replace(self, views=() if is_first_version and not self.views else names)


@dataclass(frozen=True)
class DatasetTable:
    """A dataset as the cache keeps it: columns with one entry per image.

    `rows` (n,) int64 points into the embeddings; it is -1 if the image could not be read, and `errors` has the reason.
    `root` is the resolved location of the files: size and time of a path mean something only there. `sizes` and
    `mtimes_ns` (n,) int64 distinguish unchanged files from changed ones. Columns of texts may be passed as lists; they
    are kept as `Texts`. `seconds_per_image` is what the latest extraction took for an image that it embedded; 0 where that
    is not known.
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
    seconds_per_image: float = 0.0

    def __post_init__(self) -> None:
        lists_to_texts(self)

    def __len__(self) -> int:
        return len(self.paths)

    def numbers(self) -> dict[str, Rows]:
        """Return the columns of numbers by their names in the file."""
        return {"row": self.rows, "size": self.sizes, "mtime_ns": self.mtimes_ns}

    def texts(self) -> dict[str, Texts]:
        """Return the columns of texts that the dataset has, but for attributes, by their names in the file."""
        optional = {"split": self.splits, "patient": self.patients}
        given = {name: column for name, column in optional.items() if column is not None}
        return {"path": self.paths, "label": self.labels, "error": self.errors} | given

    def same_as(self, other: "DatasetTable | None") -> bool:
        """Return whether two tables have the same content, whenever they were written."""
        if other is None or (self.name, self.source, self.root) != (other.name, other.source, other.root):
            return False
        theirs = other.numbers()
        same = all(np.array_equal(column, theirs[name]) for name, column in self.numbers().items())
        return same and self.texts() == other.texts() and dict(self.attributes) == dict(other.attributes)


class FileTable(NamedTuple):
    """A dataset's files as recorded in the cache: path, size, modification time, and the row of the embedding."""

    paths: Texts
    sizes: Rows
    mtimes_ns: Rows
    rows: Rows
