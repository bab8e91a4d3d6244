"""HDF5 files of embeddings: slides as TRIDENT and CLAM write them, and AnnData's h5ad.

Formats: TRIDENT (`trident.IO.save_h5`) and CLAM (`utils.file_utils.save_hdf5`) write one file per slide with the datasets
`features`, (n, D) or (1, n, D) of n patches, and `coords`; TRIDENT's slide encoders write `features` (D,). h5ad follows
AnnData's specification of its on-disk format (anndata.readthedocs.io, "fileformat-prose"), versions 0.1.0 and 0.2.0.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import MEAN_OF_PATCHES, Content, as_embeddings, check_dim, require_room
from hoarfrost.features.files.whole import whole_file

METADATA = "hoarfrost"
FEATURES = "features"
PATCHES_AT_ONCE = 1 << 14
MAX_RATIO = 1100  # of what HDF5's own filters can pack
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)  # of h5py, on damaged files


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DatasetError:
        raise
    except HDF5_ERRORS as error:
        raise DatasetError(f"{path}: not a readable HDF5 file: {error}. Copy it again, or create it again.") from error


def _data(path: Path, group: h5py.Group, name: str) -> Any:
    """Return a dataset that is in this very file, whose declared bytes are there."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], h5py.Dataset):
        raise DatasetError(f"{path}: no dataset {name!r} in it. It has: {', '.join(group) or 'nothing'}.")
    data = group[name]
    if data.is_virtual or data.external or data.nbytes > data.id.get_storage_size() * MAX_RATIO:
        raise DatasetError(
            f"{path}: {name!r} declares {data.nbytes:,} bytes, but {data.id.get_storage_size():,} are in the file. It is "
            "damaged, or refers to other files: copy it again, or create it again."
        )
    require_room(str(path), data.nbytes, f"{name!r} of the shape {data.shape}")
    return data


# -- slides --------------------------------------------------------------------------------------------------------------


def read_slides(path: Path) -> Content:
    """Read a file of one slide, or a folder of them, by their file names: the mean over patches is a slide's embedding.

    Raises
    ------
    DatasetError
        If a file is damaged, or dimensions differ.
    """
    files = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(
            f"{path}: no .h5 files in this folder. Pass the folder of the slides' features, or one file."
        )
    rows, poolings = zip(*(_slide(file) for file in files), strict=True)
    dims = {len(row): file for row, file in zip(rows, files, strict=True)}
    if len(dims) > 1:
        described = ", ".join(f"{dim} in {file.name}" for dim, file in dims.items())
        raise DatasetError(
            f"{path}: the embeddings have different dimensions ({described}), so they are not of one encoder. Import "
            "the files of each encoder into a cache of its own."
        )
    pooling = MEAN_OF_PATCHES if MEAN_OF_PATCHES in poolings else ""
    return Content({"ids": [file.stem for file in files]}, {FEATURES: np.stack(rows)}, pooling=pooling)


def _slide(path: Path) -> tuple[npt.NDArray[np.float32], str]:
    """Return one slide's embedding (D,) and how it was pooled; NaN of a slide without patches."""
    with _opened(path) as file:
        data = _data(path, file, FEATURES)
        shape = data.shape[1:] if data.ndim == 3 and data.shape[0] == 1 else data.shape
        if data.dtype.kind != "f" or len(shape) not in {1, 2}:
            raise DatasetError(
                f"{path}: {FEATURES!r} is {data.dtype} of the shape {data.shape}; expected floating-point numbers of "
                "the shape (n, D), (1, n, D) or (D,)."
            )
        check_dim(str(path), shape[-1])
        if len(shape) == 1:
            return as_embeddings(str(path), FEATURES, np.asarray(data)[None])[0], ""
        total = np.zeros(shape[1])
        for first in range(0, shape[0], PATCHES_AT_ONCE):  # a slide may have a hundred thousand patches
            some = slice(first, first + PATCHES_AT_ONCE)
            total += np.asarray(data[0, some] if data.ndim == 3 else data[some], np.float64).sum(axis=0)
        with np.errstate(invalid="ignore"):
            return (total / shape[0] if shape[0] else total * np.nan).astype(np.float32), MEAN_OF_PATCHES


# -- h5ad ----------------------------------------------------------------------------------------------------------------


def read_h5ad(path: Path) -> Content:
    """Read `X` as embeddings, `obs` as columns with its index as `paths`, and dense arrays of `obsm`.

    Raises
    ------
    DatasetError
        If the file is damaged, or `X` is not a dense array.
    """
    with _opened(path) as file:
        if not isinstance(file.get("obs"), h5py.Group) or not isinstance(file.get("X"), h5py.Dataset):
            raise DatasetError(
                f"{path}: not an h5ad file with a dense array X and the table obs. Convert a sparse X first."
            )
        obs = file["obs"]
        texts, numbers = dict[str, list[str]](), dict[str, npt.NDArray[np.int64]]()
        index = str(obs.attrs.get("_index", "_index"))
        for name in obs:
            if isinstance(obs[name], h5py.Group) and {"codes", "categories"} <= obs[name].keys():
                texts[name] = _categorical(path, obs[name])
                continue
            if not isinstance(obs[name], h5py.Dataset):
                continue
            data = _data(path, obs, name)
            if h5py.check_string_dtype(data.dtype) is not None:
                texts["paths" if name == index else name] = [
                    bytes(one).decode("utf-8", "surrogateescape") for one in data[()]
                ]
            elif data.dtype.kind in "iu":
                numbers[name] = data[()].astype(np.int64)
        arrays = {"embeddings": as_embeddings(str(path), "X", _data(path, file, "X")[()])}
        for name in file.get("obsm", ()):
            if isinstance(file["obsm"][name], h5py.Dataset) and file["obsm"][name].dtype.kind == "f":
                arrays[name] = as_embeddings(str(path), name, _data(path, file["obsm"], name)[()])
        stored = file["uns"].get(METADATA) if "uns" in file else None
        metadata = bytes(stored[()]).decode("utf-8", "replace") if isinstance(stored, h5py.Dataset) else ""
    return Content(texts, arrays, numbers, metadata=metadata)


def _categorical(path: Path, group: h5py.Group) -> list[str]:
    """Return the texts of a column of categories, as AnnData stores texts that repeat."""
    categories = _data(path, group, "categories")
    names = [one.decode("utf-8", "surrogateescape") if isinstance(one, bytes) else str(one) for one in categories[()]]
    return [names[code] if 0 <= code < len(names) else "" for code in _data(path, group, "codes")[()].tolist()]


def write_h5ad(path: Path, content: Content) -> None:
    """Write the array "embeddings" as `X`, other arrays into `obsm`, and columns into `obs` with `path` as its index."""
    arrays = dict(content.arrays)
    x = arrays.pop("embeddings")
    buffer = io.BytesIO()  # HDF5 ends the process if a disk is full, so it writes to memory
    with h5py.File(buffer, "w") as file:
        _encoded(file, "anndata", "0.1.0")
        _array(file, "X", x)
        _table(file, "obs", {**content.texts}, content.numbers, index="path")
        _table(file, "var", {"_index": [str(i) for i in range(x.shape[1])]}, {}, index="_index")
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _encoded(file.create_group(name), "dict", "0.1.0")
        for name, rows in arrays.items():
            _array(file["obsm"], name, rows)
        uns = file["uns"].create_dataset(METADATA, data=content.metadata, dtype=h5py.string_dtype())
        _encoded(uns, "string", "0.2.0")
    with whole_file(path) as output:
        output.write(buffer.getbuffer())


def _encoded(member: Any, kind: str, version: str) -> None:
    member.attrs["encoding-type"], member.attrs["encoding-version"] = kind, version


def _array(group: h5py.Group, name: str, values: npt.NDArray[Any]) -> None:
    _encoded(group.create_dataset(name, data=values), "array", "0.2.0")


def _table(
    file: h5py.File,
    name: str,
    texts: Mapping[str, Sequence[str]],
    numbers: Mapping[str, npt.NDArray[Any]],
    *,
    index: str,
) -> None:
    group = file.create_group(name)
    _encoded(group, "dataframe", "0.2.0")
    order = [column for column in (*texts, *numbers) if column != index]
    group.attrs["_index"] = index
    group.attrs.create("column-order", order, dtype=h5py.string_dtype(), shape=(len(order),))
    for column, cells in texts.items():
        encoded = np.array([cell.encode("utf-8", "surrogateescape") for cell in cells], object)
        _encoded(group.create_dataset(column, data=encoded, dtype=h5py.string_dtype()), "string-array", "0.2.0")
    for column, values in numbers.items():
        _array(group, column, values)
