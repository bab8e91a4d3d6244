"""Images, image folders, CSVs and npz files for tests: small, and made from a seed."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def picture(width: int = 40, height: int = 30, *, seed: int = 0) -> Image.Image:
    """Draw a colourful RGB picture: gradients, an edge, some noise; no symmetry, no two channels alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    channels = [128 + 100 * np.sin(9 * x + seed), 220 * y, 255 * (x > 0.4 + 0.3 * y)]
    pixels = np.stack(channels, axis=-1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Encode a picture as Pillow does."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def upright_over_black(content: bytes) -> Image.Image:
    """Return an image of 8 bits as Pillow does: upright, over black, in RGB."""
    with Image.open(io.BytesIO(content)) as image:
        image = ImageOps.exif_transpose(image)
        if not image.has_transparency_data:
            return image.convert("RGB")
        rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def write_images(root: Path, paths: Sequence[str], *, size: tuple[int, int] = (12, 10)) -> None:
    """Write a different small PNG under each path."""
    for seed, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture(*size, seed=seed)))


def write_image_folder(root: Path, counts: Mapping[str, int], *, size: tuple[int, int] = (12, 10)) -> Path:
    """Write an image folder: {"benign": 3} or {"train/benign": 3} gives so many images below that folder."""
    write_images(root, [f"{folder}/{i}.png" for folder, count in counts.items() for i in range(count)], size=size)
    return root


def write_csv(path: Path, rows: Sequence[Sequence[str]], **options: Any) -> Path:
    """Write rows, the header among them, as csv.writer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return path


def write_npz(
    path: Path,
    counts: Mapping[str, int],
    *,
    shape: tuple[int, ...] = (28, 28),
    compressed: bool = True,
    **replaced: npt.NDArray[Any],
) -> dict[str, npt.NDArray[Any]]:
    """Write a MedMNIST file with so many images a split, labels 0 and 1 in turn; give its arrays."""
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    arrays |= replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return arrays
