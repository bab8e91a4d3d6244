"""DICOM files for tests: a little header and pixels, in any transfer syntax that pydicom writes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def grey_values(width: int = 40, height: int = 30, bits: int = 12, signed: bool = False, seed: int = 0) -> Any:
    """Draw stored values (height, width): a ramp with noise over all that the bits hold."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 2**bits - 1, width * height).reshape(height, width)
    values = np.clip(ramp + rng.normal(0, 2**bits / 50, ramp.shape), 0, 2**bits - 1).round().astype(np.int64)
    dtype = {True: "uint8", False: "uint16"}[bits <= 8]
    return (values - 2 ** (bits - 1)).astype(dtype[1:]) if signed else values.astype(dtype)


def dicom(pixels: npt.NDArray[Any] | None, *, bits: int | None = None, **elements: Any) -> FileDataset:
    """Make a dataset of pixels (H, W), (n, H, W), (H, W, 3) or (n, H, W, 3), and further elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[repr(elements)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        _set_pixels(data, pixels, bits or pixels.dtype.itemsize * 8, elements)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def _set_pixels(data: Dataset, pixels: npt.NDArray[Any], bits: int, elements: dict[str, Any]) -> None:
    is_colour = pixels.shape[-1] == 3 and pixels.ndim >= 3
    data.PhotometricInterpretation = elements.pop("PhotometricInterpretation", "RGB" if is_colour else "MONOCHROME2")
    data.SamplesPerPixel = 3 if is_colour else 1
    if is_colour:
        data.PlanarConfiguration = 0
    if pixels.ndim - is_colour == 3:
        data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[:-1][-2:] if is_colour else pixels.shape[-2:]
    data.BitsAllocated, data.BitsStored, data.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"


def encoded(data: FileDataset) -> bytes:
    """Return the file's bytes."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()
