"""The ways that others extract features: the usual one, and the competent one. Also a script, for cold starts.

`python -m tests.benchmarks.usual FOLDER` runs one epoch of the usual way over an image folder, and
`python -m tests.benchmarks.usual FOLDER OUTPUT.npy PRECISION WORKERS` writes the features of the competent way.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

BATCH = 32


class NpzRows(Dataset[tuple[torch.Tensor, int]]):
    """Rows of an npz as MedMNIST's own loader gives them: a PIL image each, transformed."""

    def __init__(self, path: Path, transform: transforms.Compose) -> None:
        with np.load(path) as arrays:
            self.images, self.labels = arrays["train_images"], arrays["train_labels"]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index]).convert("RGB")), int(self.labels[index, 0])


def images_of(data: Path, n_images: int | None = None) -> Dataset[Any]:
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images: Any = NpzRows(data, transform) if data.suffix == ".npz" else ImageFolder(str(data), transform)
    if n_images is None or n_images >= len(images):
        return images  # type: ignore[no-any-return]
    return Subset(images, np.linspace(0, len(images) - 1, n_images).astype(int).tolist())


def frozen_resnet18() -> nn.Module:
    network = resnet18(weights=None)
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False)


def usual(data: Path, n_images: int | None = None) -> float:
    """One epoch of DataLoader without workers, and the backbone in eager float32; seconds an image."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = frozen_resnet18().to(device)
    images = images_of(data, n_images)
    started = time.perf_counter()
    with torch.no_grad():
        for batch, _ in DataLoader(images, BATCH, shuffle=True):
            network(batch.to(device)).cpu()
    return (time.perf_counter() - started) / len(images)  # type: ignore[arg-type]


def competent(data: Path, workers: int, native_bfloat16: bool, n_images: int | None = None) -> float:
    """DataLoader with workers, inference mode, channels_last, autocast where it is fast; seconds an image.

    The workers' start is left out: the first batch is not timed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = frozen_resnet18().to(device, memory_format=torch.channels_last)
    batches = DataLoader(images_of(data, n_images), BATCH, num_workers=workers, pin_memory=device == "cuda")
    started, n_done = 0.0, 0
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=native_bfloat16):
        for batch, _ in batches:
            network(batch.to(device, memory_format=torch.channels_last, non_blocking=True)).float().cpu()
            n_done += len(batch) if started else 0
            started = started or time.perf_counter()
    return (time.perf_counter() - started) / n_done


def loop(data: Path, output: Path, precision: str, workers: int) -> None:
    """Write the features of all images: what one writes by hand who knows how."""
    network = frozen_resnet18().to(memory_format=torch.channels_last)
    found = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        for batch, _ in DataLoader(images_of(data), BATCH, num_workers=workers):
            found.append(network(batch.to(memory_format=torch.channels_last)).float())
    np.save(output, torch.cat(found).numpy())


if __name__ == "__main__" and len(sys.argv) > 2:
    loop(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
elif __name__ == "__main__":
    print(f"{1 / usual(Path(sys.argv[1])):.1f} images/s")
