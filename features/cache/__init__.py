"""The embedding cache: its HDF5 format, its guarantees, its readers and its one writer. The sole user of h5py."""

from features.cache.layout import DIM, Block, DatasetTable, Embeddings, Header, Keys, Rows
from features.cache.reading import CacheFile, DamagedRowsError
from features.cache.store import EmbeddingCache
from features.cache.writer import CacheWriter, EmbeddedFile, KnownFile
from features.cache.writing import library_versions

__all__ = [
    "DIM",
    "Block",
    "CacheFile",
    "CacheWriter",
    "DamagedRowsError",
    "DatasetTable",
    "EmbeddedFile",
    "EmbeddingCache",
    "Embeddings",
    "Header",
    "Keys",
    "KnownFile",
    "Rows",
    "library_versions",
]
