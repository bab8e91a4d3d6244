"""What is needed to repeat a run: its command, data, embeddings and machine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.words import duration
from hoarfrost.runs import RunConfig


@dataclass(frozen=True)
class Fact:
    """One row of the provenance. `is_code` marks what a machine reads: digests, commands, paths."""

    name: str
    value: str
    is_code: bool = False


def provenance_of(config: RunConfig) -> dict[str, tuple[Fact, ...]]:
    """Return what is needed to repeat a run, in groups; settings and versions are in the methods."""
    return {
        "Run": tuple(_run_facts(config)),
        "Dataset": (
            Fact("source", config.dataset.source, is_code=True),
            *([Fact("split", rule_named(config.dataset.split_by).origin)] if config.sample == "image" else []),
        ),
        **({"Embeddings": tuple(_embedding_facts(config))} if config.embeddings.fingerprint else {}),
    }


def _run_facts(config: RunConfig) -> Iterator[Fact]:
    yield Fact("command", config.command, is_code=True)
    yield Fact("created", f"{config.created}, in {duration(config.seconds)}")
    if config.streamed_bytes is not None:
        yield Fact("embeddings", f"streamed from the cache, {config.streamed_bytes / 1e9:.2f} GB at a time")
    yield Fact("machine", config.machine)


def _embedding_facts(config: RunConfig) -> Iterator[Fact]:
    embeddings = config.embeddings
    for one in embeddings.of_each:
        yield Fact("cache", one.cache, is_code=True)
    if embeddings.digest:
        yield Fact("digest of the rows", embeddings.digest, is_code=True)
    yield Fact("fingerprint", embeddings.fingerprint, is_code=True)
    if embeddings.views:
        yield Fact("views", ", ".join(embeddings.views))
    if embeddings.layers:
        yield Fact("layers", ", ".join(map(str, embeddings.layers)))
    yield Fact("weights", embeddings.weights, is_code=True)
    yield Fact("weights' SHA-256", embeddings.weights_sha256, is_code=True)


def plain(value: object) -> str:
    """Write a value of the configuration: text unchanged, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
