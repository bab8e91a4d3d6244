"""The embedding cache: its HDF5 format, its guarantees, its readers and its one writer. The sole user of h5py."""

from hoarfrost.features.cache.checks import CacheInfo, VerifyReport, describe, verify
from hoarfrost.features.cache.compaction import CompactSummary, compact
from hoarfrost.features.cache.joined import JoinedCache, open_caches
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.known import KnownFiles
from hoarfrost.features.cache.layout import (
    Block,
    DatasetTable,
    Embeddings,
    Header,
    Keys,
    Mask,
    are_unseen,
    file_keys,
    row_bytes,
    unseen_key,
)
from hoarfrost.features.cache.lock import lock_owner
from hoarfrost.features.cache.opened import is_hdf5
from hoarfrost.features.cache.parts import EmbeddedFile, PartWriter
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.store import EmbeddingCache, existing_header
from hoarfrost.features.cache.writer import CacheWriter
from hoarfrost.features.cache.writing import hdf5_version, library_versions, write_cache_file

__all__ = [
    "Block",
    "CacheFile",
    "CacheInfo",
    "CacheWriter",
    "CompactSummary",
    "DatasetTable",
    "EmbeddedFile",
    "EmbeddingCache",
    "Embeddings",
    "Header",
    "JoinedCache",
    "KeyIndex",
    "Keys",
    "KnownFiles",
    "Mask",
    "PartWriter",
    "VerifyReport",
    "are_unseen",
    "compact",
    "describe",
    "existing_header",
    "file_keys",
    "hdf5_version",
    "is_hdf5",
    "library_versions",
    "lock_owner",
    "open_caches",
    "row_bytes",
    "unseen_key",
    "verify",
    "write_cache_file",
]
