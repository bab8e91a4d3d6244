"""DICOM pixels by pydicom's reader and slow, obvious arithmetic: what `decoding.dicom` is compared with.

Nothing of the package is used. A file that contradicts itself raises an error here, too.
"""

import io
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, JpegImagePlugin
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.uid import JPEGBaseline8Bit

ANGIOGRAPHY = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")
COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422"}
JPEG_2000_COLOURS = {"YBR_RCT", "YBR_ICT"}


def shown(content: bytes) -> npt.NDArray[np.float64]:
    """Return the first frame's pixels as shares of white, (H, W) or (H, W, 3); raise any error if there are none."""
    data = pydicom.dcmread(io.BytesIO(content))
    data.file_meta.TransferSyntaxUID  # noqa: B018 - raises if it is missing
    if data.file_meta.TransferSyntaxUID == JPEGBaseline8Bit and is_subsampled(data):
        data.PhotometricInterpretation = "YBR_FULL"  # RGB cannot be
    values = data.pixel_array  # colours are converted to RGB
    if int(data.get("NumberOfFrames", None) or 1) > 1:
        values = values[0]
    if data.file_meta.TransferSyntaxUID.name.startswith("JPEG") and values.ndim == 2:
        values = without_unused_bits(values, data.BitsStored)
    return shares_of_white(values, data)


def is_subsampled(data: FileDataset) -> bool:
    """Return whether the first frame is a JPEG whose chroma has fewer samples, by Pillow."""
    frame = get_frame(data.PixelData, 0, number_of_frames=int(data.get("NumberOfFrames", None) or 1))
    with Image.open(io.BytesIO(frame)) as image:
        return JpegImagePlugin.get_sampling(image) in {1, 2}


def without_unused_bits(values: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Clear what is above the stored bits, as pydicom does in files that are not compressed."""
    low = values.astype(np.int64) % 2**bits
    return np.where((values.dtype.kind == "i") & (low >= 2 ** (bits - 1)), low - 2**bits, low)


def shares_of_white(values: npt.NDArray[Any], data: FileDataset) -> npt.NDArray[np.float64]:
    """Return stored values, with colours converted, as shares of white."""
    kind = data.PhotometricInterpretation
    if values.ndim == 3:
        is_jpeg_2000 = "JPEG 2000" in data.file_meta.TransferSyntaxUID.name
        if kind not in (COLOURS | JPEG_2000_COLOURS if is_jpeg_2000 else COLOURS) or data.PixelRepresentation:
            raise ValueError(kind)
        return values / (2.0**data.BitsStored - 1)
    if kind == "PALETTE COLOR":
        return palette(values, data)
    if not kind.startswith("MONOCHROME"):
        raise ValueError(kind)
    share = grey(values.astype(object), data)
    return 1 - share if kind == "MONOCHROME1" else share


def grey(values: npt.NDArray[Any], data: FileDataset) -> npt.NDArray[np.float64]:
    """Return grey values (H, W) of Python's own integers as shares of white, without MONOCHROME1's inversion."""
    bits, is_signed = data.BitsStored, data.PixelRepresentation == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    table = (
        None if data.get("SOPClassUID") in ANGIOGRAPHY else table_of(data, data.get("ModalityLUTSequence"), low, high)
    )
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    if table is not None:
        values, low, high = mapped(values, *table), 0, 65535
    elif slope is not None and intercept is not None:
        if slope == 0:
            raise ValueError("slope")
        values = values.astype(float) * float(slope) + float(intercept)
        low, high = sorted(end * float(slope) + float(intercept) for end in (low, high))
    table = table_of(data, data.get("VOILUTSequence"), low, high)
    if table is not None:
        return mapped(values, *table).astype(float) / reach(table[0])
    if "WindowWidth" not in data:
        ordered = sorted(values.ravel().tolist())
        ends = [ordered[max(0, math.ceil(len(ordered) * share) - 1)] for share in (0.005, 0.995)]
        ends = ends if ends[0] < ends[1] else [ordered[0], ordered[-1]]
        span = float(ends[1] - ends[0]) or np.inf
        return np.clip((values.astype(float) - float(ends[0])) / span, 0, 1)
    center, width = (float(np.ravel(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    return np.clip((values.astype(float) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def palette(values: npt.NDArray[Any], data: FileDataset) -> npt.NDArray[np.float64]:
    """Return indices (H, W) as RGB, shares of white."""
    bits, is_signed = data.BitsStored, data.PixelRepresentation == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    tables = []
    for name in ("Red", "Green", "Blue"):
        item = Dataset()
        item.LUTDescriptor = list(data[f"{name}PaletteColorLookupTableDescriptor"].value)
        item.add_new("LUTData", "OW", data[f"{name}PaletteColorLookupTableData"].value)
        tables.append(entries_of(data, item, low, high))
    white = max(reach(entries) for entries, _ in tables)
    return np.stack([mapped(values.astype(object), *table).astype(float) / white for table in tables], axis=-1)


def table_of(data: Dataset, items: Any, low: float, high: float) -> tuple[list[int], int] | None:
    """Return the entries and the first value mapped of the first table that is not empty."""
    for item in items or []:
        if item.get("LUTDescriptor") is not None and item.get("LUTData") not in (None, b"", []):
            return entries_of(data, item, low, high)
    return None


def entries_of(data: Dataset, item: Dataset, low: float, high: float) -> tuple[list[int], int]:
    n, first, bits = item.LUTDescriptor
    n = (n % 65536) or 65536
    if not 8 <= bits % 65536 <= 16:
        raise ValueError(bits)
    # Of the two ways to read the first value, the one whose table covers more of the values that can occur.
    ways = {
        start: min(start + n - 1, high) - max(start, low) for start in (first % 65536, (first + 32768) % 65536 - 32768)
    }
    best = [start for start, n_covered in ways.items() if n_covered == max(ways.values())]
    first = first if first in best else best[0]
    raw = item.LUTData
    order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
    if not isinstance(raw, bytes):
        raw = struct.pack(f"{order}{len(raw)}H", *raw) if not isinstance(raw, int) else struct.pack(order + "H", raw)
    if len(raw) == 2 * n:
        return list(struct.unpack(f"{order}{n}H", raw)), first
    if len(raw) != n + n % 2:
        raise ValueError("length")
    words = struct.unpack(f"{order}{len(raw) // 2}H", raw)
    return [byte for word in words for byte in (word & 255, word >> 8)][:n], first


def mapped(values: npt.NDArray[Any], entries: list[int], first: int) -> npt.NDArray[Any]:
    """Look up each value, one by one."""
    found = [entries[min(max(round(value) - first, 0), len(entries) - 1)] for value in values.ravel().tolist()]
    return np.array(found, object).reshape(values.shape)


def reach(entries: list[int]) -> int:
    """Return the greatest value of the bits that the entries take, of 8 at least."""
    white = 255
    while white < max(entries):
        white = 2 * white + 1
    return white
