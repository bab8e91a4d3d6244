"""A run's images, as far as they still exist: by label, by embedding and as pictures."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np

from hoarfrost.features.decoding.pictures import fitted
from hoarfrost.features.errors import CacheError, DatasetError, ImageDecodeError, RemoteError
from hoarfrost.inference.explain.drawing import EXAMPLE_SIDE, Pixels
from hoarfrost.inference.explain.examples import Example, TrainingExamples, training_examples
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.runs import Run, read_run

KEPT_EXAMPLES = 1_000  # small pictures of training images; the same ones are often needed again

logger = logging.getLogger(__name__)


class Cases:
    """A run's images, as far as they are available.

    Parameters
    ----------
    explainer : Explainer
    run : Run
    n : int
        How many training images are wanted for an image.
    source : RunSource, optional
        The run's cache, and the images behind it.
    """

    def __init__(self, explainer: Explainer, run: Run, n: int, source: RunSource | None = None) -> None:
        self._explainer, self._run, self._n, self._source = explainer, run, n, source
        self._examples: TrainingExamples | None = None
        if source is not None and n:
            self._examples = training_examples(run, source, explainer.predictor.head)
        self._has_images = source is not None
        self._pictures: dict[str, Pixels] = {}

    @classmethod
    def opened(cls, directory: Path, explainer: Explainer, n: int, notes: list[str], stack: ExitStack) -> "Cases":
        """Open the run's cache; if that fails, add a note of what is missing without it."""
        run = read_run(directory)
        try:
            return cls(explainer, run, n, stack.enter_context(opened_source(run)))
        except CacheError as error:
            notes.append(f"Skipped the nearest training images and the true labels. {error}")
            return cls(explainer, run, n)

    @property
    def n_training(self) -> int | None:
        """The number of training images; None where it is not known."""
        return None if self._examples is None else len(self._examples)

    @cached_property
    def _labels(self) -> dict[bytes, str]:
        if self._source is None:
            return {}
        return dict(zip(self._source.keys(self._run.predictions.paths), self._run.predictions.labels, strict=True))

    def label(self, key: bytes) -> str | None:
        """Return the label that the run has for an image, by the digest of its content; None if it is not known."""
        return self._labels.get(key)

    def nearest(self, explanation: ExplainedImage, key: bytes, patient: str) -> tuple[Example, ...]:
        """Find the nearest training images of other patients."""
        if self._examples is None:
            return ()
        return self._examples.nearest(explanation.embedding, self._n, key=key, patient=patient)

    def captioned(self, examples: Sequence[Example]) -> list[tuple[Pixels, tuple[str, ...]]]:
        """Return each example's picture, blank where it is not available, and its caption."""
        found = self.pictures(examples)
        blank = np.full((EXAMPLE_SIDE, EXAMPLE_SIDE), 200, np.uint8)
        return [
            (found.get(one.path, blank), (one.label or "(no label)", f"distance {one.distance:.1f}", one.path))
            for one in examples
        ]

    def pictures(self, examples: Sequence[Example]) -> dict[str, Pixels]:
        """Read pictures of the examples whose content is still what was embedded, by path."""
        wanted = [one.path for one in examples if one.path not in self._pictures]
        if self._source is not None and self._has_images and wanted:
            self._read(self._source, wanted)
        return {one.path: self._pictures[one.path] for one in examples if one.path in self._pictures}

    def _read(self, source: RunSource, paths: Sequence[str]) -> None:
        if len(self._pictures) > KEPT_EXAMPLES:
            self._pictures.clear()
        try:
            for path, content in source.contents(paths, {}):
                try:
                    self._pictures[path] = fitted(self._explainer.prepared(content)[0], EXAMPLE_SIDE)
                except ImageDecodeError:
                    continue
        except (DatasetError, RemoteError) as error:
            logger.warning("The nearest training images are named, but not shown. %s", error)
            self._has_images = False
