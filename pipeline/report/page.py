"""From a run to the page: which facts the report tells, in which words and tables. The template says how they look."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.metrics import binary_problems, confusion_matrix
from pipeline.report.evaluation import SPLIT_NAMES, Evaluation, evaluation_of
from pipeline.report.figures import roc_figure, training_figures
from pipeline.report.look import look_of
from pipeline.report.svg import Drawing, draw
from pipeline.report.templates import template_environment
from pipeline.runs import (
    SPLITS,
    CrossValidation,
    DatasetFacts,
    HeadResult,
    LearningPoint,
    ReferenceResult,
    Run,
    RunConfig,
    UnreadableImage,
)

N_LISTED = 50
MAX_CLASSES_IN_TITLE = 5
SPLIT_ORIGINS = {
    "given": "given by the data set",
    "given, val from train": "given by the data set, but validation taken from its train split",
    "patient": "made here, by patient",
    "image": "made here, by image",
}


@dataclass(frozen=True)
class Counts:
    """Images with an embedding: `rows` are (label, number in each split, sum), `total` is of all images."""

    splits: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...], int], ...]
    total: tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Cell:
    """One count of a confusion matrix and its share of the row, 0 to 1; None where the row is empty."""

    count: int
    share: float | None


@dataclass(frozen=True)
class LabelScores:
    """One of several labels an image: images that it is known of, those that have it, and the ROC AUC as text."""

    label: str
    n_known: int
    n_with: int
    roc_auc: str


@dataclass(frozen=True)
class Fact:
    """One line of the provenance. `is_code` is for what a machine reads: digests, commands, paths."""

    name: str
    value: str
    is_code: bool = False


@dataclass(frozen=True)
class Page:
    """All that the template shows. `heads` begins with the selected one, then descends by validation ROC AUC."""

    task: str
    banners: tuple[str, ...]
    config: RunConfig
    evaluation: Evaluation
    split: str
    selected: HeadResult
    scores: dict[str, Any]
    heads: tuple[HeadResult, ...]
    references: tuple[ReferenceResult, ...]
    cross_validation: CrossValidation | None
    learning_curve: tuple[LearningPoint, ...]
    alarms: tuple[tuple[str, str], ...]
    counts: Counts
    unreadable: tuple[UnreadableImage, ...]
    n_unlisted: int
    roc: Drawing
    confusion: tuple[tuple[str, tuple[Cell, ...]], ...]
    labels: tuple[LabelScores, ...]
    training: tuple[tuple[str, Drawing], ...]
    provenance: Mapping[str, tuple[Fact, ...]]


def render(run: Run, *, with_images: bool = True) -> str:
    """Write a run's report as HTML.

    Parameters
    ----------
    run : Run
    with_images : bool
        False leaves out all pixels.

    Returns
    -------
    str
        A whole document, with its style and figures inside.
    """
    environment = template_environment()
    environment.filters |= {"auc": auc_text, "decimal": "{:.3f}".format, "count": "{:,}".format, "percent": _percent}
    page = page_of(run)
    look = look_of(run, page.evaluation, with_images=with_images)
    return environment.get_template("template.html.j2").render(vars(page), look=look)


def page_of(run: Run) -> Page:
    """Collect what the report tells of a run.

    Parameters
    ----------
    run : Run

    Returns
    -------
    Page
    """
    evaluation = evaluation_of(run)
    heads = _ranked(run)
    unreadable = run.config.dataset.unreadable
    first_seed = [epoch for epoch in run.history if epoch.seed == run.config.seed]
    training = training_figures(heads, first_seed)
    return Page(
        task=_task(evaluation.classes, run.config.dataset),
        banners=_banners(run.config, evaluation, heads[0]),
        config=run.config,
        evaluation=evaluation,
        split=SPLIT_NAMES[evaluation.split],
        selected=heads[0],
        scores=evaluation.scores(heads[0]),
        heads=heads,
        references=run.references,
        cross_validation=run.cross_validation,
        learning_curve=run.learning_curve,
        alarms=tuple((head.name, alarm) for head in heads for alarm in head.alarms),
        counts=_counts(run.config.dataset),
        unreadable=unreadable[:N_LISTED],
        n_unlisted=len(unreadable[N_LISTED:]),
        roc=draw(roc_figure(heads, evaluation), panel_height=294),
        confusion=() if evaluation.is_multilabel else _confusion(heads[0], evaluation),
        labels=_label_scores(heads[0], evaluation),
        training=tuple((name, draw(figure, panel_height=90)) for name, figure in training.items()),
        provenance=_provenance(run.config),
    )


def auc_text(scores: Mapping[str, Any]) -> str:
    """Write a ROC AUC with its 95% interval: "0.843 (0.781 to 0.905)"."""
    low, high = scores["roc_auc_ci95"]
    return f"{scores['roc_auc']:.3f} ({low:.3f} to {high:.3f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _ranked(run: Run) -> tuple[HeadResult, ...]:
    selected = run.head(run.selected)
    others = [head for head in run.heads if head is not selected]
    return selected, *sorted(others, key=lambda head: -float(head.val["roc_auc"]))


def _task(classes: tuple[str, ...], dataset: DatasetFacts) -> str:
    if dataset.positive is not None:
        return f"{classes[1]} against {classes[0]}"
    if len(classes) > MAX_CLASSES_IN_TITLE:
        return f"{dataset.name}: {len(classes)} {'labels' if dataset.is_multilabel else 'classes'}"
    if dataset.is_multilabel:
        return f"Which of {', '.join(classes)}"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"


def _banners(config: RunConfig, evaluation: Evaluation, selected: HeadResult) -> tuple[str, ...]:
    banners = [*config.warnings, *(f"The selected head {selected.name}: {alarm}." for alarm in selected.alarms)]
    if evaluation.split == "val":
        banners.insert(
            0,
            "The data set has no test split: all figures here are on the validation split, which also chose the head "
            "and its best epoch. Expect less on new images.",
        )
    weights = config.embeddings.weights
    if weights.startswith("random:"):
        banners.insert(
            0, f"These embeddings come from an untrained backbone ({weights}): the figures are a floor, not a result."
        )
    return tuple(banners)


def _counts(dataset: DatasetFacts) -> Counts:
    splits = [split for split in SPLITS if split in dataset.counts]
    table = np.array([[dataset.counts[split].get(label, 0) for split in splits] for label in dataset.classes])  # (C, S)
    rows = tuple(
        (label, tuple(numbers.tolist()), int(numbers.sum()))
        for label, numbers in zip(dataset.classes, table, strict=True)
    )
    sizes = tuple(dataset.n_split[split] for split in splits)
    total = sizes, sum(sizes)
    return Counts(tuple(SPLIT_NAMES[split] for split in splits), rows, total)


def _confusion(head: HeadResult, evaluation: Evaluation) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    y_pred = evaluation.probabilities[head.name].argmax(axis=1)
    matrix = confusion_matrix(evaluation.y_true, y_pred, len(evaluation.classes))  # (C, C): rows are true
    rows = []
    for label, counts in zip(evaluation.classes, matrix, strict=True):
        n_images = int(counts.sum())
        rows.append((label, tuple(Cell(int(count), count / n_images if n_images else None) for count in counts)))
    return tuple(rows)


def _label_scores(head: HeadResult, evaluation: Evaluation) -> tuple[LabelScores, ...]:
    """Give the selected head's area by label, where an image may have several."""
    if not evaluation.is_multilabel:
        return ()
    scores = evaluation.scores(head)
    found = []
    for number, _, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        label = evaluation.classes[number]
        area = {"roc_auc": scores["roc_auc_per_class"][label], "roc_auc_ci95": scores["roc_auc_ci95_per_class"][label]}
        found.append(LabelScores(label, len(y), int(y.sum()), auc_text(area)))
    return tuple(found)


def _provenance(config: RunConfig) -> dict[str, tuple[Fact, ...]]:
    return {
        "Run": _run_facts(config),
        "Data set": _dataset_facts(config.dataset),
        "Embeddings": _embedding_facts(config),
        "Versions": tuple(Fact(name, version) for name, version in config.versions.items()),
    }


def _run_facts(config: RunConfig) -> tuple[Fact, ...]:
    return (
        Fact("command", config.command, is_code=True),
        Fact("seed", str(config.seed)),
        Fact("seeds", str(config.seeds)),
        Fact("learning rate", config.schedule),
        Fact("class weight", config.class_weight),
        Fact("label smoothing", f"{config.label_smoothing:g}"),
        Fact("created", config.created),
        Fact("took", duration(config.seconds)),
        Fact("epochs, at most", str(config.epochs)),
        Fact("patience", f"{config.patience} epochs"),
        Fact("batch size", str(config.batch_size)),
        *_streaming_facts(config),
        Fact("device", config.device),
        Fact("machine", config.machine),
    )


def _streaming_facts(config: RunConfig) -> tuple[Fact, ...]:
    if config.streamed_bytes is None:
        return ()
    return (Fact("embeddings", f"streamed from the cache, {config.streamed_bytes / 1e9:.2f} GB at a time"),)


def _dataset_facts(dataset: DatasetFacts) -> tuple[Fact, ...]:
    return (
        Fact("name", dataset.name),
        Fact("source", dataset.source, is_code=True),
        Fact("images", f"{dataset.n_images:,}"),
        Fact("patients", "not known" if dataset.n_patients is None else f"{dataset.n_patients:,}"),
        Fact("split", SPLIT_ORIGINS.get(dataset.split_by, dataset.split_by)),
    )


def _embedding_facts(config: RunConfig) -> tuple[Fact, ...]:
    embeddings = config.embeddings
    preprocessing = ", ".join(f"{key}: {_plain(value)}" for key, value in embeddings.preprocessing.items())
    return (
        Fact("cache", embeddings.cache, is_code=True),
        Fact("fingerprint", embeddings.fingerprint, is_code=True),
        Fact("backbone", embeddings.backbone),
        Fact("weights", embeddings.weights, is_code=True),
        Fact("weights' SHA-256", embeddings.weights_sha256, is_code=True),
        Fact("preprocessing", preprocessing),
        Fact("precision", embeddings.precision),
    )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Write a time span for people: "3.4 s", "2 min 14 s", "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
