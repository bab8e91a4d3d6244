"""A run's training images, by their embeddings and as pictures, as far as they are still there."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hoarfrost.features.decoding.pictures import fitted
from hoarfrost.features.errors import CacheError, DatasetError, ImageDecodeError, RemoteError
from hoarfrost.inference.explain.examples import Example, TrainingExamples, training_examples
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer
from hoarfrost.inference.explain.pictures import EXAMPLE_SIDE, Pixels
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.runs import read_run

KEPT_EXAMPLES = 1_000  # small pictures of training images; the same ones come again and again

logger = logging.getLogger(__name__)


class Cases:
    """The run's training images, as far as they can be had: by embedding, and as pictures.

    Parameters
    ----------
    explainer : Explainer
    n : int
        How many are wanted of an image.
    examples : TrainingExamples, optional
    source : RunSource, optional
        Where their pictures are.
    """

    def __init__(
        self, explainer: Explainer, n: int, examples: TrainingExamples | None = None, source: RunSource | None = None
    ) -> None:
        self._explainer, self._n = explainer, n
        self._examples, self._source = examples, source
        self._pictures: dict[str, Pixels] = {}

    @classmethod
    def opened(cls, run: Path, explainer: Explainer, n: int, notes: list[str], stack: ExitStack) -> "Cases":
        """Open the run's cache; note it where there is none any more, and what that leaves out."""
        if not n:
            return cls(explainer, 0)
        try:
            facts = read_run(run)
            source = stack.enter_context(opened_source(facts))
            return cls(explainer, n, training_examples(facts, source, explainer.predictor.head), source)
        except CacheError as error:
            notes.append(f"the nearest training images are left out: {error}")
            return cls(explainer, 0)

    @property
    def n_images(self) -> int | None:
        """How many training images there are; None where that is not known any more."""
        return None if self._examples is None else len(self._examples)

    def nearest(self, explanation: ExplainedImage, key: bytes, patient: str) -> tuple[Example, ...]:
        """Find the nearest training images of other patients."""
        if self._examples is None:
            return ()
        return self._examples.nearest(explanation.embedding, self._n, key=key, patient=patient)

    def pictures(self, examples: Sequence[Example]) -> list[tuple[Pixels, tuple[str, ...]]]:
        """Read those that are still what was embedded, and say of each how it is labelled."""
        found = self.found(examples)
        blank = np.full((EXAMPLE_SIDE, EXAMPLE_SIDE), 200, np.uint8)
        return [
            (found.get(one.path, blank), (one.label or "(no label)", f"distance {one.distance:.1f}", one.path))
            for one in examples
        ]

    def found(self, examples: Sequence[Example]) -> dict[str, Pixels]:
        """Read pictures of those that are still what was embedded, by path."""
        wanted = [one.path for one in examples if one.path not in self._pictures]
        if self._source is not None and wanted:
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
            logger.warning("training images are named, but not shown: %s", error)
            self._source = None
