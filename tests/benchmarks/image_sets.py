"""Generated image sets, of the sizes that the extraction is measured on."""

import io
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def textures(size: int, colour: bool) -> Iterator[Pixels]:
    """Return endless different images: smooth shapes with speckle, which compress about as photographs do."""
    rng = np.random.default_rng(0)
    shape = (size, size, 3) if colour else (size, size)
    coarse = rng.integers(0, 200, (size // 16, size // 16, *shape[2:]), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    speckle = rng.integers(0, 40, shape, np.uint8)
    for i in count():
        pixels = np.roll(smooth, 7 * i, axis=1) + np.roll(speckle, 13 * i, axis=0)
        pixels[0, 0], pixels[0, 1] = i % 256, i // 256  # never two alike
        yield pixels


def write_images(folder: Path, n: int, size: int, *, suffix: str, colour: bool) -> Path:
    """Write `n` square images of two classes."""
    for label in "ab":
        (folder / label).mkdir(parents=True)
    for i, pixels in enumerate(islice(textures(size, colour), n)):
        buffer = io.BytesIO()
        options = {"quality": 90} if suffix == ".jpg" else {"compress_level": 1}
        Image.fromarray(pixels).save(buffer, "JPEG" if suffix == ".jpg" else "PNG", **options)
        (folder / "ab"[i % 2] / f"{i:06d}{suffix}").write_bytes(buffer.getvalue())
    return folder


def write_npz(path: Path, n: int) -> Path:
    """Write `n` grey images of 28 x 28 in MedMNIST's layout."""
    images = np.stack([pixels[:28, :28] for pixels in islice(textures(64, colour=False), n)])
    np.savez(path, train_images=images, train_labels=np.arange(n)[:, None] % 2)
    return path
