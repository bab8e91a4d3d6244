"""Where the figures came from: command, configuration, data, embeddings, versions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.words import duration
from hoarfrost.runs import DatasetFacts, RunConfig


@dataclass(frozen=True)
class Fact:
    """One line of the provenance. `is_code` is for what a machine reads: digests, commands, paths."""

    name: str
    value: str
    is_code: bool = False


def provenance_of(config: RunConfig) -> dict[str, tuple[Fact, ...]]:
    """Give all that made a run's figures, in groups."""
    return {
        "Run": tuple(_run_facts(config)),
        "Dataset": _dataset_facts(config.dataset),
        "Embeddings": tuple(_embedding_facts(config)),
        "Versions": tuple(Fact(name, version) for name, version in config.versions.items()),
    }


def _run_facts(config: RunConfig) -> Iterator[Fact]:
    yield Fact("command", config.command, is_code=True)
    yield Fact("seed", str(config.seed))
    yield Fact("seeds", str(config.seeds))
    yield Fact("learning rate", config.schedule)
    yield Fact("class weight", config.class_weight)
    yield Fact("label smoothing", f"{config.label_smoothing:g}")
    if config.per_patient is not None:
        yield Fact("metrics count", f"patients: the {config.per_patient} of their images' probabilities")
    if config.prevalence is not None:
        yield Fact("stated prevalence", f"{config.prevalence:g}")
    yield Fact("created", config.created)
    yield Fact("took", duration(config.seconds))
    yield Fact("epochs, at most", str(config.epochs))
    yield Fact("patience", f"{config.patience} epochs")
    yield Fact("batch size", str(config.batch_size))
    if config.streamed_bytes is not None:
        yield Fact("embeddings", f"streamed from the cache, {config.streamed_bytes / 1e9:.2f} GB at a time")
    yield Fact("device", config.device)
    yield Fact("machine", config.machine)


def _dataset_facts(dataset: DatasetFacts) -> tuple[Fact, ...]:
    return (
        Fact("name", dataset.name),
        Fact("source", dataset.source, is_code=True),
        Fact("images", f"{dataset.n_images:,}"),
        Fact("patients", "not known" if dataset.n_patients is None else f"{dataset.n_patients:,}"),
        Fact("split", rule_named(dataset.split_by).origin),
    )


def _embedding_facts(config: RunConfig) -> Iterator[Fact]:
    embeddings = config.embeddings
    preprocessing = ", ".join(f"{key}: {plain(value)}" for key, value in embeddings.preprocessing.items())
    yield Fact("cache", embeddings.cache, is_code=True)
    if embeddings.digest:
        yield Fact("digest of keys and checksums", embeddings.digest, is_code=True)
    yield Fact("fingerprint", embeddings.fingerprint, is_code=True)
    yield Fact("backbone", embeddings.backbone)
    yield Fact("weights", embeddings.weights, is_code=True)
    yield Fact("weights' SHA-256", embeddings.weights_sha256, is_code=True)
    yield Fact("preprocessing", preprocessing)
    yield Fact("precision", embeddings.precision)


def plain(value: object) -> str:
    """Write a value of the configuration: texts as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
