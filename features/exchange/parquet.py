"""Parquet files of embeddings: one list column, or one column per dimension. The sole user of pyarrow."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache import Embeddings
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import Content, as_embeddings, check_dim, numbered, require_room
from hoarfrost.features.files.whole import whole_file

METADATA = b"hoarfrost"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError("Parquet files need pyarrow. Install it: pip install 'hoarfrost[exchange]'.") from error
    return pyarrow


def read_parquet(path: Path) -> Content:
    """Read texts, whole numbers, and lists of floating-point numbers; columns numbered from 0 or 1 become one array.

    Raises
    ------
    DatasetError
        If the file is damaged, or lists have different lengths.
    """
    pa = _pyarrow()
    try:
        with pa.parquet.ParquetFile(path) as file:
            declared = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            require_room(str(path), declared, f"{file.metadata.num_rows:,} rows")
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(
            f"{path}: not a readable Parquet file: {error}. Copy it again, or create it again."
        ) from error
    types, texts, numbers, arrays = pa.types, dict[str, list[str]](), dict[str, Any](), dict[str, Embeddings]()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_string(column.type) or types.is_large_string(column.type):
            texts[name] = [one or "" for one in column.to_pylist()]
        elif types.is_binary(column.type) or types.is_large_binary(column.type):
            texts[name] = [(one or b"").decode("utf-8", "surrogateescape") for one in column.to_pylist()]
        elif types.is_integer(column.type) and not column.null_count:
            numbers[name] = column.to_numpy().astype(np.int64)
            texts[name] = [str(one) for one in numbers[name].tolist()]
        elif _is_list(pa, column.type):
            arrays[name] = _rows_of_lists(pa, path, name, column)
    columns = numbered([name for name in table.column_names if types.is_floating(table.schema.field(name).type)])
    if columns:
        values = np.stack([table.column(name).to_numpy() for name in columns], axis=1)
        arrays.setdefault("embeddings", as_embeddings(str(path), f"{columns[0]} to {columns[-1]}", values))
    metadata = (table.schema.metadata or {}).get(METADATA, b"").decode("utf-8", "replace")
    return Content(texts, arrays, numbers, metadata=metadata)


def _is_list(pa: Any, kind: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _rows_of_lists(pa: Any, path: Path, name: str, column: Any) -> Embeddings:
    """Return lists as rows; one that is missing becomes NaN."""
    blocks: list[tuple[npt.NDArray[np.bool_], npt.NDArray[Any]]] = []
    dims: set[int] = {column.type.list_size} if pa.types.is_fixed_size_list(column.type) else set()
    for chunk in column.chunks:
        if not pa.types.is_fixed_size_list(chunk.type):
            dims |= {one for one in chunk.value_lengths().unique().to_pylist() if one is not None}
        blocks.append((chunk.is_valid().to_numpy(zero_copy_only=False), chunk.flatten().to_numpy(zero_copy_only=False)))
    if len(dims) > 1:
        raise DatasetError(
            f"{path}: the lists in {name} have different lengths ({min(dims)} to {max(dims)}), so they are not of one "
            "encoder. Export them again."
        )
    dim = dims.pop() if dims else 0
    check_dim(str(path), dim)
    rows = np.full((len(column), dim), np.nan, np.float32)
    start = 0
    for is_there, values in blocks:
        rows[start : start + len(is_there)][is_there] = as_embeddings(str(path), name, values.reshape(-1, dim))
        start += len(is_there)
    return rows


def write_parquet(path: Path, content: Content) -> None:
    """Write columns; embeddings as lists of a fixed size, null where an image has none."""
    pa = _pyarrow()
    columns: dict[str, Any] = {name: _text_column(pa, list(texts)) for name, texts in content.texts.items()}
    columns |= {name: pa.array(numbers) for name, numbers in content.numbers.items()}
    for name, rows in content.arrays.items():
        flat = pa.array(np.ascontiguousarray(rows).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(
            flat, rows.shape[1], mask=pa.array(np.isnan(rows).all(axis=1))
        )
    table = pa.table(columns).replace_schema_metadata({METADATA: content.metadata.encode()})
    with whole_file(path) as file:
        pa.parquet.write_table(table, file)


def _text_column(pa: Any, texts: list[str]) -> Any:
    """Return texts; as bytes if one of them, such as a path, is not UTF-8."""
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([text.encode("utf-8", "surrogateescape") for text in texts], pa.binary())
