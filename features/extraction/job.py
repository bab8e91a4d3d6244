"""What an engine is given to embed a dataset: where images come from, how they are embedded, where all of it goes."""

from collections.abc import Callable
from dataclasses import dataclass

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.plan import BadImages, ExtractOptions, ImageTable, Progress
from hoarfrost.features.extraction.recipes import Recipe


@dataclass(frozen=True)
class Job:
    """An extraction: the dataset, its cache's writer, what is known of each image, and who wants to know of it.

    `lender` has embeddings that are copied.
    """

    dataset: Dataset
    writer: CacheWriter
    table: ImageTable
    bad: BadImages
    recipe: Recipe
    options: ExtractOptions
    on_progress: Callable[[Progress], None]
    stop: StopSignals
    lender: EmbeddingCache | None = None
