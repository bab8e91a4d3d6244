"""Identity: the digest of an image's bytes, and the digest of all that decides an embedding's value."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.encoder.registry import PUBLISHED_WORDS, EncoderSpec, network_files
from hoarfrost.features.origins import encoder_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hoarfrost.features.decoding.region import Region

KEY_BYTES = 32
FILE_BYTES = 24  # of a key that the image's file decides alone; the others may be of its region
_NETWORK = "preprocessing.network"
OWN_WINDOW = "the file's first"
STEPS: Mapping[str, Any] = {
    "decode": "to 8-bit grey or RGB as Pillow's convert() does; 16-bit colour by its upper 8 bits",
    "deep grey": "16, 32 bits, float and signed from the least to the greatest of 0.5% and 99.5% of its pixels, to 0 and 255",
    "transparency": "over black",
    "orientation": "EXIF's",
    "frames": "each page of a TIFF and frame of a DICOM file; of animations the first",
    "dicom": "modality LUT or rescale; the first VOI LUT, else the first usable window, else as deep grey without padding; "
    "MONOCHROME1 inverted; palette and YBR to RGB; colour of more than 8 bits by its share of the greatest",
    "dicom codecs": "JPEG by Pillow, 12-bit or lossless by GDCM, JPEG-LS by CharLS, JPEG 2000 by OpenJPEG, RLE by pydicom",
    "dicom window": OWN_WINDOW,
    "interpolation": "bilinear, antialiased, 8-bit",
}
"""From an image's bytes to any encoder's input. A change of what a step does must change its text here."""


def jpeg_short_side(size: int) -> int:
    """Return the least length, in pixels, of a DCT-scaled JPEG's shorter side, for an encoder's input of this size."""
    return 2 * size


def preprocessing(encoder: EncoderSpec, window: str | None = None) -> Mapping[str, Any]:
    """Return the project's own steps and the encoder's; a `window` replaces each DICOM file's own."""
    return {
        **STEPS,
        **({} if window is None else {"dicom window": window}),
        "jpeg": f"DCT-scaled (MPO too) by 1/2, 1/4 or 1/8, its shorter side at least {jpeg_short_side(encoder.size)}",
        "resize": [encoder.size, encoder.size],
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        **({} if encoder.network is None else {"network": asdict(encoder.network)}),
    }


def window_asked_for(steps: Mapping[str, Any]) -> str | None:
    """Return the window that the user chose, as a preprocessing records it; None if each DICOM file's own is used."""
    window = steps.get("dicom window", OWN_WINDOW)
    return None if window == OWN_WINDOW else str(window)


def bytes_key(content: bytes) -> bytes:
    """Return an image file's key: the SHA-256 of its encoded bytes, 32 bytes."""
    return hashlib.sha256(content).digest()


def pixels_key(pixels: "npt.NDArray[np.uint8]") -> bytes:
    """Return the key of an image that is an array: the SHA-256 of its shape and pixels, 32 bytes."""
    # The same bytes as 28 x 28 and as 14 x 56 are two images.
    digest = hashlib.sha256(f"uint8 {pixels.shape}\n".encode())
    digest.update(pixels.data if pixels.flags.c_contiguous else pixels.tobytes())
    return digest.digest()


def image_key(content: "bytes | EncodedFrame | npt.NDArray[np.uint8]", region: "Region | None" = None) -> bytes:
    """Return the key of an image's embedding: the SHA-256 of its file, of its file's digest and frame, or of its pixels.

    Where views show its region, the last eight bytes are the first of the SHA-256 of its box.
    """
    if isinstance(content, EncodedFrame):
        key = bytes_key(content.digest + f"frame {content.number}\n".encode())
    else:
        key = bytes_key(content) if isinstance(content, bytes) else pixels_key(content)
    return key if region is None else key[:FILE_BYTES] + bytes_key(repr(region.box).encode())[: KEY_BYTES - FILE_BYTES]


def weights_digest(tensors: "Iterable[tuple[str, npt.NDArray[Any]]]") -> str:
    """Return the SHA-256 (hex) of the names, shapes and values of weights, whatever file they came in."""
    digest = hashlib.sha256()
    for name, values in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def weights_origin(spec: str, encoder: EncoderSpec) -> str:
    """Return where the weights "imagenet", "random:SEED" or of a checkpoint's path come from; empty if they are missing.

    The same origin means the same tensors. This loads no torch, so that an extraction with nothing to embed need not load
    the weights to identify them.
    """
    if spec in PUBLISHED_WORDS:
        return "" if encoder.published is None else encoder.published.origin
    if spec.startswith("random:"):
        return f"{spec} by {', '.join(f'{name} {version(name)}' for name in encoder.libraries)}"
    try:
        digests = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in network_files(spec)]
        return f"file with SHA-256 {' after '.join(digests)}"
    except OSError:
        return ""


@dataclass(frozen=True)
class Fingerprint:
    """All that decides an embedding's value.

    Attributes
    ----------
    backbone : str
        The encoder's name: "resnet18", "timm:vit_small_patch14_dinov2".
    weights_sha256 : str
        `weights_digest` of the encoder's tensors, hex.
    preprocessing : mapping
        From decoded pixels to the encoder's input; JSON values.
        That of the view of the encoder's own size; another view's name states in what it differs.
    precision : str
        What the forward pass computes in: "float32", "bfloat16", or "int8:" and the ranges that it was calibrated to.
    layers : tuple of int
        The stages whose means are an embedding, see `EncoderSpec.checked_layers`; empty for the encoder's own output.
    """

    backbone: str
    weights_sha256: str
    preprocessing: Mapping[str, Any]
    precision: str
    layers: tuple[int, ...] = ()

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder of this name, or as recorded; raises EncoderError if this version does not have it."""
        return encoder_of(self.backbone, self.preprocessing)

    @property
    def digest(self) -> str:
        """SHA-256 of the parts in canonical JSON, hex."""
        parts = asdict(self)
        if not self.layers:  # as before embeddings could have several layers
            del parts["layers"]
        return hashlib.sha256(_canonical(parts).encode()).hexdigest()

    def differences(self, other: "Fingerprint") -> list[str]:
        """Return which parts differ: "precision: float32 here, bfloat16 there"."""
        mine, theirs = _parts(self), _parts(other)
        if self.backbone != other.backbone:  # the facts of another network follow from its name
            mine, theirs = ({part: parts[part] for part in parts if part != _NETWORK} for parts in (mine, theirs))
        return [
            f"{part}: {mine.get(part, 'absent')} here, {theirs.get(part, 'absent')} there"
            for part in sorted(mine.keys() | theirs.keys())
            if mine.get(part) != theirs.get(part)
        ]


def _parts(fingerprint: Fingerprint) -> dict[str, str]:
    return {
        "backbone": fingerprint.backbone,
        "weights (SHA-256)": fingerprint.weights_sha256,
        "precision": fingerprint.precision,
        "layers": ",".join(map(str, fingerprint.layers)) or "the last",
        **{f"preprocessing.{key}": _canonical(value) for key, value in fingerprint.preprocessing.items()},
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
