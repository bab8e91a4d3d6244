"""Runs that were never trained, for reports of all kinds; and what a report's page holds."""

from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation import Scores
from hoarfrost.runs import (
    DatasetFacts,
    EmbeddingFacts,
    Epoch,
    HeadResult,
    Predictions,
    ReferenceResult,
    Run,
    RunConfig,
    SeedResult,
    from_json,
)

HOSTILE = "<img src=x onerror=alert(1)>"


BREAKOUT = '"]}</script></style><script>alert(2)</script>'


HEADS = ("linear", "mlp:256", "mlp:256x2,dropout=0.2")


BINARY = ("benign", "malignant", "normal")


N_OF_SPLIT = {"train": 90, "val": 30, "test": 60}


def dataset_facts(
    classes: Sequence[str], positive: tuple[str, ...] | None, labels: Sequence[str], splits: Sequence[str]
) -> DatasetFacts:
    counts: dict[str, dict[str, int]] = {}
    for split, label in zip(splits, labels, strict=True):
        counts.setdefault(split, dict.fromkeys(classes, 0))[label] += 1
    return DatasetFacts(
        name="phantoms",
        source="demo",
        classes=tuple(classes),
        positive=positive,
        split_by="patient",
        n_images=len(labels),
        n_patients=41,
        counts=counts,
        n_split={split: sum(by_class.values()) for split, by_class in counts.items()},
        unreadable=(),
    )


def run_config(dataset: DatasetFacts) -> RunConfig:
    return RunConfig(
        command="hoarfrost train --cache demo.h5 --run run",
        created="2025-11-22T10:11:12+00:00",
        seconds=134.2,
        head_seconds={},
        seed=0,
        seeds=1,
        epochs=30,
        patience=10,
        batch_size=32,
        schedule="constant",
        class_weight="none",
        label_smoothing=0.0,
        device="cpu",
        streamed_bytes=None,
        dataset=dataset,
        embeddings=EmbeddingFacts(
            cache="demo.h5",
            fingerprint="9f2c" * 16,
            backbone="resnet18",
            weights="imagenet",
            weights_sha256="f37072fd" * 8,
            preprocessing={"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406]},
            precision="float32",
        ),
        versions={"hoarfrost": "0.1.0", "torch": "2.9.0"},
        machine="Linux x86-64, 2 cores",
    )


def probabilities_near(rng: np.random.Generator, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Draw probabilities, (n, C), of a head that is often right."""
    classes = np.eye(int(numbers.max()) + 1)
    odds = np.exp(rng.normal(size=(len(numbers), len(classes))) + 1.4 * classes[numbers])
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def head_result(
    rng: np.random.Generator, name: str, n_of_split: dict[str, int], per_class: Sequence[str]
) -> HeadResult:
    val = scores_of(rng, n_of_split["val"], per_class)
    test = scores_of(rng, n_of_split["test"], per_class) if "test" in n_of_split else None
    return HeadResult(
        name=name,
        n_parameters=1026,
        learning_rate=1e-3,
        weight_decay=1e-2,
        dropout=0.0,
        best_epoch=20,
        epochs=30,
        weights_file="heads/0.safetensors",
        val=val,
        test=test,
        seeds=(SeedResult(0, 0.8, 0.8, 20, 30),),
    )


def scores_of(rng: np.random.Generator, n_images: int, per_class: Sequence[str]) -> Scores:
    area = round(float(rng.uniform(0.75, 0.9)), 6)
    scores: dict[str, object] = {
        "n": n_images,
        "roc_auc": area,
        "roc_auc_ci95": [area - 0.0612, area + 0.0587],
        "accuracy": area - 0.041,
        "majority_accuracy": 0.5333,
        "loss": 0.612,
        "a_later_metric": {"sensitivity": 0.5},
    }
    if per_class:
        scores["roc_auc_per_class"] = {label: round(float(rng.uniform(0.7, 0.95)), 6) for label in per_class}
    return from_json(scores, Scores)


def training_history(head: str, seed: int, n_epochs: int = 30) -> list[Epoch]:
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(n_epochs) / 8)
    train, val = 0.3 + 0.5 * falling, 0.45 + 0.35 * falling + rng.normal(0, 0.01, n_epochs)
    area = 0.88 - 0.2 * falling + rng.normal(0, 0.01, n_epochs)
    return [Epoch(head, 0, i + 1, float(train[i]), float(val[i]), float(area[i]), 1e-3) for i in range(n_epochs)]


def make_run(
    directory: Path,
    *,
    classes: Sequence[str] = BINARY,
    positive: tuple[str, ...] | None = ("malignant",),
    heads: Sequence[str] = HEADS,
    n_of_split: dict[str, int] = N_OF_SPLIT,
) -> Run:
    """Make a run of synthetic numbers, the second head selected if there are several. It is not yet written."""
    rng = np.random.default_rng(0)
    splits = [split for split, n in n_of_split.items() for _ in range(n)]
    numbers = np.arange(len(splits)) % len(classes)
    labels = [classes[int(number)] for number in numbers]
    if positive is not None:
        numbers = np.array([label in positive for label in labels], dtype=np.int64)
    predictions = Predictions(
        paths=tuple(f"images/{row:05}.png" for row in range(len(splits))),
        patients=tuple(f"p{row // 4}" for row in range(len(splits))),
        splits=tuple(splits),
        labels=tuple(labels),
        probabilities={head: probabilities_near(rng, numbers) for head in heads},
    )
    per_class = classes if positive is None else ()
    results = tuple(head_result(rng, head, n_of_split, per_class) for head in heads)
    history = tuple(epoch for seed, head in enumerate(heads) for epoch in training_history(head, seed))
    config = replace(
        run_config(dataset_facts(classes, positive, labels, splits)), head_seconds=dict.fromkeys(heads, 1.5)
    )
    references = (ReferenceResult("logistic regression", n_of_split["train"], results[0].val, results[0].test),)
    return Run(directory, config, heads[min(1, len(heads) - 1)], results, references, None, (), history, predictions)


def with_dataset(run: Run, **changes: object) -> Run:
    return replace(run, config=replace(run.config, dataset=replace(run.config.dataset, **changes)))  # type: ignore[arg-type]


def with_weights(run: Run, weights: str) -> Run:
    return replace(run, config=replace(run.config, embeddings=replace(run.config.embeddings, weights=weights)))


class Page(HTMLParser):
    """A report read back: its elements, and the text that a reader sees (no style, no script)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = self._hidden and tag not in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}
