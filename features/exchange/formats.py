"""The formats of embeddings, one entry each: how a file is recognised, read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import Content
from hoarfrost.features.exchange.eva import MANIFEST, read_eva
from hoarfrost.features.exchange.hdf5 import read_h5ad, read_slides, write_h5ad
from hoarfrost.features.exchange.npz import read_npz, write_npz
from hoarfrost.features.exchange.parquet import read_parquet, write_parquet


@dataclass(frozen=True)
class Format:
    """A format; `write` is None where it is read only."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Content]
    write: Callable[[Path, Content], None] | None = None


FORMATS = (
    Format("npz", (".npz",), read_npz, write_npz),
    Format("parquet", (".parquet", ".pq"), read_parquet, write_parquet),
    Format("h5ad", (".h5ad",), read_h5ad, write_h5ad),
    Format("slides", (".h5", ".hdf5"), read_slides),
    Format("eva", (".csv",), read_eva),
)


def read_content(path: Path) -> Content:
    """Read a file of embeddings, by its suffix; a folder is one of eva if it has a manifest, else one of slides.

    Raises
    ------
    DatasetError
        If it is missing, of another format, or damaged.
    """
    if path.is_dir():
        return read_eva(path / MANIFEST) if (path / MANIFEST).is_file() else read_slides(path)
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder. Pass a file of embeddings.")
    return _by_suffix(path, FORMATS, "is read").read(path)


def format_to_write(path: Path, name: str | None) -> Format:
    """Return the format of a name, or else of a file's suffix, that can be written; raise DatasetError if there is none."""
    written = tuple(one for one in FORMATS if one.write is not None)
    return next((one for one in written if one.name == name), None) or _by_suffix(path, written, "is written")


def _by_suffix(path: Path, formats: tuple[Format, ...], what: str) -> Format:
    found = next((one for one in formats if path.suffix.lower() in one.suffixes), None)
    if found is None:
        known = ", ".join(suffix for one in formats for suffix in one.suffixes)
        raise DatasetError(f"{path}: no format of embeddings that {what} has this suffix. Known: {known}.")
    return found
