"""Valid DICOM files whose headers are changed: each is shown as `dicom_oracle` computes it, or refused.

`make fuzz` runs it: `python -m tests.support.dicom_mutated N` prints how many of each, and ends with 1 at a difference.
"""

import io
import random
import sys
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.errors import ImageDecodeError
from tests.support.dicom_oracle import shown
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    RLELossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)
PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
PYDICOMS = (  # of pydicom's own files, those that are small and valid
    "GDCMJ2K_TextGBR.dcm", "JPEGLSNearLossless_08.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_rle_16bit.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_jpeg.dcm", "image_dfl.dcm",
)  # fmt: skip
COUNTS = (0, 1, 16, 255, 256, 257, 4095, 4096, 65535)
FIRSTS = (0, 1, 100, 4000, 32767, 32768, 64512, 65535)


def table(entries: Any, first: int, bits: int, kind: str = "US") -> Sequence:
    """Return a Modality or VOI LUT Sequence; the kind OW packs entries of 8 bits as bytes."""
    item, dtype = Dataset(), "u1" if kind == "OW" and bits == 8 else "<u2"
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", kind, np.asarray(entries, dtype).tobytes() if kind == "OW" else list(map(int, entries)))
    return Sequence([item])


def coloured(values: Any, depth: int, n: int, **elements: Any) -> FileDataset:
    """Return a palette file; elements are those of `dicom`."""
    data = dicom(values, PhotometricInterpretation="PALETTE COLOR", **elements)
    entries = np.random.default_rng(1).integers(0, 2**depth, (3, n)).astype(f"<u{1 if depth == 8 else 2}")
    for name, row in zip(("Red", "Green", "Blue"), entries, strict=True):
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [n % 65536, 0, depth])
        data.add_new(f"{name}PaletteColorLookupTableData", "OW", row.tobytes())
    return data


@cache
def files() -> tuple[bytes, ...]:
    """Return valid files of many kinds."""
    window = {"WindowCenter": 900, "WindowWidth": 1500}
    ramp = np.arange(4096)
    grey, signed = grey_values(72, 64), grey_values(72, 64, bits=16, signed=True)
    rgb = np.random.default_rng(0).integers(0, 256, (64, 72, 3)).astype(np.uint8)
    made = [
        dicom(grey, bits=12, **window), dicom(signed, **window), dicom(grey_values(72, 64, bits=8), **window),
        dicom(grey, bits=12, VOILUTSequence=table(ramp, 0, 12)),
        dicom(grey, bits=12, VOILUTSequence=table(ramp // 16, 0, 8, "OW")),
        dicom(grey, bits=12, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=table(ramp, -1024, 16)),
        dicom(signed, VOILUTSequence=table(ramp * 16, -2048, 16, "OW")),
        dicom(grey, bits=12, ModalityLUTSequence=table(ramp * ramp // 256, 0, 16), **window),
        dicom(grey, bits=12, ModalityLUTSequence=table(ramp, 0, 12, "OW"), VOILUTSequence=table(ramp[::-1], 0, 12)),
        coloured(grey, 8, 4096, bits=12), coloured(grey, 16, 4096, bits=12), coloured(grey_values(72, 64, bits=8), 16, 256),
        dicom(rgb), dicom(rgb, PhotometricInterpretation="YBR_FULL"),
    ]  # fmt: skip
    syntaxes = (RLELossless, JPEG2000Lossless, JPEGLSLossless)
    packed = [dicom(values, bits=bits, **window) for _ in syntaxes for values, bits in ((grey, 12), (rgb, 8))]
    for i, data in enumerate(packed):
        data.compress(syntaxes[i // 2], encoding_plugin="pylibjpeg" if syntaxes[i // 2] == JPEG2000Lossless else "")
    jpegs = [in_jpeg(rgb, kind, Image.fromarray(rgb)) for kind in ("YBR_FULL_422", "YBR_FULL")]
    other = [in_syntax(made[5], ImplicitVRLittleEndian), in_syntax(made[9], ExplicitVRBigEndian)]
    others = [path.read_bytes() for path in sorted(PYDICOM_FILES.glob("*.dcm")) if path.name in PYDICOMS]
    return (*map(encoded, (*made, *packed, *jpegs)), *other, *others)


def in_jpeg(values: Any, photometric: str, image: Image.Image) -> FileDataset:
    """Return a file of baseline JPEG, as Pillow writes it: JFIF, with subsampled colours."""
    data, stream = dicom(values, PhotometricInterpretation=photometric), io.BytesIO()
    image.save(stream, "JPEG")
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([stream.getvalue()]), JPEGBaseline8Bit
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return data


def in_syntax(data: FileDataset, syntax: UID) -> bytes:
    """Write a file of 16-bit pixels, and of tables in words or numbers, in another uncompressed transfer syntax."""
    data = pydicom.dcmread(io.BytesIO(encoded(data)))
    data.file_meta.TransferSyntaxUID = syntax
    is_little = syntax != ExplicitVRBigEndian
    for element in data.iterall():
        if element.VR == "OW" and not is_little:
            element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=is_little)
    return buffer.getvalue()


def changed(content: bytes, chance: random.Random) -> bytes:
    """Change one to three elements of a file's header, and sometimes the transfer syntax that it states."""
    data = pydicom.dcmread(io.BytesIO(content))
    for _ in range(chance.randint(1, 3)):
        chance.choice((_change_depth, _change_colour, _change_table, _change_window))(data, chance)
    buffer = io.BytesIO()
    is_implicit, is_little_endian = data.original_encoding
    pydicom.dcmwrite(buffer, data, implicit_vr=is_implicit, little_endian=is_little_endian)
    whole = buffer.getvalue()
    return labelled(whole, chance.choice(SYNTAXES)) if chance.random() < 0.2 else whole


def labelled(content: bytes, syntax: str) -> bytes:
    """Return a file whose meta information states another transfer syntax; the rest stays."""
    meta, old = DicomBytesIO(), pydicom.dcmread(io.BytesIO(content)).file_meta
    meta.is_implicit_VR, meta.is_little_endian = False, True
    start = 144 + int.from_bytes(content[140:144], "little")
    old.TransferSyntaxUID = UID(syntax)
    write_file_meta_info(meta, old)
    return content[:132] + meta.getvalue() + content[start:]


def _change_depth(data: FileDataset, chance: random.Random) -> None:
    kind = chance.randrange(4)
    if kind == 0:
        data.BitsStored = chance.choice((1, 7, 8, 10, 12, 14, 16, data.BitsAllocated))
        data.HighBit = data.BitsStored - 1
    elif kind == 1:
        data.BitsAllocated = chance.choice((8, 16, 32))
    elif kind == 2:
        data.PixelRepresentation = 1 - data.PixelRepresentation
    else:
        data.HighBit = chance.choice((7, 11, 15))


def _change_colour(data: FileDataset, chance: random.Random) -> None:
    kind = chance.randrange(3)
    if kind == 0:
        data.PhotometricInterpretation = chance.choice(PHOTOMETRICS)
    elif kind == 1:
        data.PlanarConfiguration = chance.choice((0, 1))
    else:
        data.SamplesPerPixel = chance.choice((1, 3))


def _change_table(data: FileDataset, chance: random.Random) -> None:
    names = [e for e in data if e.keyword.endswith("LookupTableDescriptor")]
    items = [item["LUTDescriptor"] for k in ("ModalityLUTSequence", "VOILUTSequence") for item in data.get(k, [])]
    if not names + items:
        return
    element = chance.choice(names + items)
    words, i = [int(word) for word in element.value], chance.randrange(3)
    words[i] = chance.choice((COUNTS, FIRSTS, (7, 8, 10, 12, 16, 17))[i])
    words[1] = (words[1] + 32768) % 65536 - 32768 if element.VR == "SS" else words[1] % 65536
    element.value = words


def _change_window(data: FileDataset, chance: random.Random) -> None:
    data.WindowCenter, data.WindowWidth = chance.choice((-500, 0, 128, 2048)), chance.choice((2, 256, 4096))
    if chance.random() < 0.3:
        data.RescaleSlope, data.RescaleIntercept = chance.choice((1, 2, -1, 0.5)), chance.choice((-1024, 0, 100))


def compare(content: bytes) -> str:
    """Return "equal", "refused", "more" (read here alone), or how the pixels differ."""
    try:
        found = decode_pixels(content) / 255
    except ImageDecodeError:
        return "refused"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = shown(content)
    except Exception as error:  # pydicom raises nearly anything
        return f"read, but refused by the oracle: {type(error).__name__} {error}"
    if found.shape != wanted.shape:
        return f"shape {found.shape}, not {wanted.shape}"
    difference = float(np.abs(found - wanted).max())
    return "equal" if difference <= 1.01 / 255 else f"differs by {difference * 255:.1f} of 255"


def main(n: int) -> None:
    chance, counts = random.Random(0), Counter[str]()
    for i in range(n):
        content = changed(files()[i % len(files())], chance)
        result = compare(content)
        counts[result] += 1
        if result not in {"equal", "refused"}:
            print(f"{i}: {result}")
    n_different = n - counts["equal"] - counts["refused"]
    print(f"{n:,} changed headers: {counts['equal']:,} equal, {counts['refused']:,} refused, {n_different:,} different")
    sys.exit(bool(n_different))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
