"""npz files of embeddings: `embeddings` or `features` (n, D), and `paths` or `ids` (n,). No pickle is ever loaded."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import Content, as_embeddings, require_room
from hoarfrost.features.files.whole import whole_file

METADATA = "hoarfrost"
MAX_DEFLATE_RATIO = 1100  # zlib cannot pack tighter


def read_npz(path: Path) -> Content:
    """Read the arrays of one and two dimensions.

    Raises
    ------
    DatasetError
        If the file is damaged, declares more than it has, or holds pickled objects.
    """
    try:
        arrays = dict(_arrays(path))
    except DatasetError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        raise DatasetError(f"{path}: not a readable npz file: {error}. Copy it again, or create it again.") from error
    metadata = arrays.pop(METADATA, np.array(""))
    lists = {name: array for name, array in arrays.items() if array.ndim == 1}
    texts = {name: _texts(array) for name, array in lists.items() if array.dtype.kind in "USiu"}
    numbers = {name: array.astype(np.int64) for name, array in lists.items() if array.dtype.kind in "iu"}
    tables = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "f"}
    tables = {name: as_embeddings(str(path), name, array) for name, array in tables.items()}
    return Content(texts, tables, numbers, metadata=str(metadata[()]) if metadata.dtype.kind == "U" else "")


def _texts(array: npt.NDArray[Any]) -> list[str]:
    if array.dtype.kind == "S":
        return [bytes(one).decode("utf-8", "surrogateescape") for one in array.tolist()]
    return [str(one) for one in array.tolist()]


def _arrays(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                _check_size(path, name, info, member)
            with archive.open(info) as member:
                yield name, np.lib.format.read_array(member, allow_pickle=False)


def _check_size(path: Path, name: str, info: zipfile.ZipInfo, member: IO[bytes]) -> None:
    """Refuse pickled objects, and an array that declares more bytes than the file can have."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    if dtype.hasobject:
        raise DatasetError(
            f"{path}: the array {name!r} holds pickled Python objects, which could run code, so it is not read. Save "
            "texts as numpy.array(names, dtype=str)."
        )
    declared = float(np.prod([float(size) for size in shape])) * dtype.itemsize
    if declared > info.file_size or info.file_size > max(info.compress_size, 1) * MAX_DEFLATE_RATIO:
        raise DatasetError(
            f"{path}: the array {name!r} declares {declared:,.0f} bytes, but the file does not have them. It is "
            "damaged: copy it again, or create it again."
        )
    require_room(str(path), declared, f"the array {name!r} of the shape {shape}")


def write_npz(path: Path, content: Content) -> None:
    """Write columns as arrays: texts as NumPy's own text, so that reading needs no pickle."""
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.array(list(column), np.str_) for name, column in content.texts.items()
    }
    arrays |= {**content.numbers, **content.arrays, METADATA: np.array(content.metadata)}
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
