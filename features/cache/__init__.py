"""The embedding cache: its HDF5 format, its guarantees, its readers and its one writer. The sole user of h5py."""

from features.cache.checks import CacheInfo, CompactSummary, VerifyReport, compact, describe, verify
from features.cache.keys import KeyIndex
from features.cache.layout import DIM, Block, DatasetTable, Embeddings, Header, Keys, Rows
from features.cache.lock import lock_owner
from features.cache.parts import EmbeddedFile, KnownFile, PartWriter
from features.cache.reading import CacheFile, DamagedCacheError
from features.cache.store import EmbeddingCache, begun_header
from features.cache.writer import CacheWriter
from features.cache.writing import library_versions

__all__ = [
    "DIM",
    "Block",
    "CacheFile",
    "CacheInfo",
    "CacheWriter",
    "CompactSummary",
    "DamagedCacheError",
    "DatasetTable",
    "EmbeddedFile",
    "EmbeddingCache",
    "Embeddings",
    "Header",
    "KeyIndex",
    "Keys",
    "KnownFile",
    "PartWriter",
    "Rows",
    "VerifyReport",
    "begun_header",
    "compact",
    "describe",
    "library_versions",
    "lock_owner",
    "verify",
]
