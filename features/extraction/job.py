"""What an engine does, and its input: where images come from, how they are embedded, where all of it goes."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.plan import BadImages, ExtractOptions, ImageRecords, LoopCounts, Progress
from hoarfrost.features.extraction.recipes import Recipe


@dataclass(frozen=True)
class Job:
    """An extraction: the dataset, its cache's writer, how to embed, and where progress is reported.

    Embeddings that `source_cache` has are copied from there.
    """

    dataset: Dataset
    writer: CacheWriter
    recipe: Recipe
    options: ExtractOptions
    on_progress: Callable[[Progress], None]
    stop: StopSignals
    source_cache: EmbeddingCache | None = None

    @cached_property
    def table(self) -> ImageRecords:
        """What is known of each image."""
        return ImageRecords(len(self.dataset))

    @cached_property
    def bad(self) -> BadImages:
        """The unreadable images."""
        return BadImages(self.dataset, self.table.errors, self.options)


class Engine(Protocol):
    """Where and how images are embedded; a context manager, made of its own options and the extraction's."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start_early(self) -> None:
        """Start what takes long, before the dataset's images and the precision are known."""

    def choose_precision(self) -> str:
        """Return the precision that is fast where the embeddings will be computed."""

    def embed(self, job: Job, todo: Sequence[int]) -> LoopCounts:
        """Embed images of a dataset, at least one, ascending `todo`.

        Raises
        ------
        HoarfrostError
            Its subclass says what is wrong; what is finished is saved then.
        """


def open_engine(options: ExtractOptions) -> Engine:
    """Return the engine that the options name, not entered yet; its module, and so its libraries, load only now."""
    module, _, name = options.engine.implementation.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)(options.engine, options)
    return engine
