"""Phantoms whose lesions are known, and whether a map's maximum falls inside: for the benchmark, and for a smaller test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet18

from hoarfrost.demo import CLASS_SHARES, draw_patient, plan_patients
from hoarfrost.demo.phantoms import SCANNERS, Phantom, draw_anatomy, draw_phantom
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.inference.explain import Explainer, upsampled


def demo_phantoms(n_images: int, seed: int, label: str | None = None) -> Iterator[Phantom]:
    """Draw the demo set of this seed again, all of it or one class."""
    for patient in plan_patients(n_images, seed):
        if label in {None, patient.label}:
            yield from draw_patient(patient)


def phantoms_anywhere(n_images: int, seed: int) -> Iterator[Phantom]:
    """Draw malignant lesions planted anywhere in the gland, and not near the middle as in the demo set."""
    rng = np.random.default_rng(seed)
    for i in range(n_images):
        anatomy = draw_anatomy("malignant", rng)
        assert anatomy.lesion is not None
        lesion = replace(anatomy.lesion, x=rng.uniform(0.2, 0.8), depth=rng.uniform(0.25, 0.7))
        yield draw_phantom(replace(anatomy, lesion=lesion), SCANNERS[i % len(SCANNERS)], rng)


@dataclass(frozen=True)
class Hits:
    """How often the maximum falls inside the lesion: of the maps, of other images' maps, and of a random pixel."""

    n: int
    share: float
    of_others: float
    by_chance: float

    @property
    def times_chance(self) -> float:
        """How many times as often as a random pixel."""
        return self.share / self.by_chance


def hits(explainer: Explainer, phantoms: Sequence[Phantom], class_name: str) -> Hits:
    """Map the evidence for a class in phantoms with lesions, and count."""
    images = [explainer.prepared(one.image)[1] for one in phantoms]
    found = explainer.explain(images, explainer.class_number(class_name))
    masks = np.stack([one.lesion_mask for one in phantoms])  # (n, H, W)
    height, width = masks.shape[1:]
    tops = [int(upsampled(one.cells, height, width, RESNET18).argmax()) for one in found]
    inside = masks.reshape(len(masks), -1)[:, tops]  # [i, j]: whether the maximum of map j is in lesion i
    others = ~np.eye(len(masks), dtype=bool)
    return Hits(
        len(masks), float(inside.diagonal().mean()), float(inside[others].mean()) if len(masks) > 1 else 0.0,
        float(masks.mean()),
    )  # fmt: skip


def train_backbone(path: Path, *, n_images: int, seed: int, plan: Sequence[tuple[int, int]]) -> Path:
    """Train a ResNet18 on phantoms of a demo set by their labels alone, and write a checkpoint.

    `plan` lists how many epochs at which size; small images first, as they cost less.
    """
    torch.manual_seed(0)
    labels = [p.label for p in plan_patients(n_images, seed) for _ in p.paths]
    pixels = [load_image(encode_png(one.image)) for one in demo_phantoms(n_images, seed)]
    x, y = torch.stack(pixels), torch.tensor([list(CLASS_SHARES).index(label) for label in labels])
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) * 255 for each in (RESNET18.mean, RESNET18.std))
    network = resnet18(num_classes=len(CLASS_SHARES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    network.train()
    for size in [size for n_epochs, size in plan for _ in range(n_epochs)]:
        for rows in torch.randperm(len(x)).split(32):
            batch = x[rows].flip(3) if torch.rand(()) < 0.5 else x[rows]
            batch = batch.expand(-1, 3, -1, -1).float()
            if size != RESNET18.size:
                batch = nn.functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
            batch = ((batch - mean) / std).contiguous(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(network(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(network.state_dict(), path)
    return path
