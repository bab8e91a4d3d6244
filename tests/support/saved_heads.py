"""Heads made by hand, as a run would save them: committees of any kinds, folds and weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from hoarfrost.evaluation import choose_thresholds
from hoarfrost.evaluation.conformal import calibrate, calibrate_classes
from hoarfrost.evaluation.novelty import fit_novelty
from hoarfrost.features.cache import Header
from hoarfrost.heads.files import SavedHead, SavedMember, Validated
from hoarfrost.heads.layers import Standardise
from hoarfrost.heads.specs import parse_head
from tests.support.caches import HEADER

MIXED = (
    "logistic,C=0.01",
    "logistic,C=0.1,transform=none",
    "mlp:16,members=2",
    "mlp:16,members=2",
    "mlp:8x2,dropout=0,transform=unit",
    "quadratic,C=3",
    "linear",
)
"""One member each; all kinds and all transforms."""
CLASSES = ("benign", "malignant")


def member(text: str, weight: float = 1.0, *, seed: int = 0, fold: int = 0, n_classes: int = 2) -> SavedMember:
    """Return a member for embeddings (B, 512) that are never negative, with weights drawn by its seed and fold."""
    generator = torch.Generator().manual_seed(1000 * seed + fold)
    spec, dim = parse_head(text), HEADER.dim
    standardise = Standardise(
        torch.rand(dim, generator=generator), torch.rand(dim, generator=generator) + 0.2, spec.transform
    )
    layers = spec.build(dim, n_classes)
    with torch.no_grad():
        for weights in layers.parameters():
            weights.normal_(std=weights.shape[-1] ** -0.5, generator=generator)
    return SavedMember(spec, seed, fold, weight, nn.Sequential(standardise, layers).eval())


def members(texts: Sequence[str] = MIXED, *, n_classes: int = 2) -> tuple[SavedMember, ...]:
    """Return members with unequal weights, of three folds."""
    raw = np.arange(1.0, len(texts) + 1)
    weights = (raw / raw.sum()).tolist()
    return tuple(
        member(text, weight, seed=i // 3, fold=i % 3, n_classes=n_classes)
        for i, (text, weight) in enumerate(zip(texts, weights, strict=True))
    )


def embeddings(n: int = 40, seed: int = 0) -> np.ndarray:
    """Draw embeddings (n, 512) float32 as after a ReLU and pooling: some are exactly zero."""
    drawn = np.random.default_rng(seed).normal(0.3, 0.6, (n, HEADER.dim))
    return np.maximum(drawn, 0).astype(np.float32)


def saved_head(
    of: Sequence[SavedMember] | None = None,
    names: tuple[str, ...] = CLASSES,
    *,
    name: str = "mean",
    multilabel: bool = False,
    header: Header = HEADER,
) -> SavedHead:
    """Return a head of some members, with what validation fixes drawn at random."""
    rng, n = np.random.default_rng(0), 60
    of = members(n_classes=len(names)) if of is None else tuple(of)
    p = rng.dirichlet(np.ones(len(names)), n) if not multilabel else rng.random((n, len(names)))
    y = rng.integers(0, 2, p.shape) if multilabel else np.arange(n) % len(names)
    if multilabel:
        points = tuple(choose_thresholds(y[:, i], p[:, i]) for i in range(len(names)))
    else:
        points = (choose_thresholds(y, p[:, 1]),) if len(names) == 2 else ()
    temperatures = tuple(rng.uniform(0.5, 2, len(names) if multilabel else 1).tolist())
    novelty = fit_novelty([embeddings(80, seed=1)])
    return SavedHead(
        name, of, names, multilabel, header, None,
        (Validated("image", n, temperatures, points, calibrate_classes(y, p)),),
        novelty, calibrate(novelty.distances(embeddings(50, seed=2))),
    )  # fmt: skip
