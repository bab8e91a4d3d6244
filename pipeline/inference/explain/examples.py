"""Explanation by example: the training images with the nearest embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.sources import RunSource
from hoarfrost.runs import Run


@dataclass(frozen=True)
class Example:
    """A training image that is similar to another image: `distance` is that between their standardised embeddings."""

    path: str
    label: str
    distance: float


class TrainingExamples:
    """The training images of a run, in which to find the most similar.

    Parameters
    ----------
    embeddings : ndarray (n, D) float32
    mean, std : ndarray (D,) float32
        Of the training images, from the head.
    paths, labels, patients : sequence of str, length n
        Unknown patients are "".
    keys : sequence of bytes, length n
        The digests of the images' contents.

    Notes
    -----
    Distances are Euclidean between standardised embeddings: what the head sees, each number in units of its own
    deviation. Cosines of raw embeddings would mostly measure what all images share.
    """

    def __init__(
        self,
        embeddings: npt.NDArray[np.float32],
        mean: npt.NDArray[np.float32],
        std: npt.NDArray[np.float32],
        paths: Sequence[str],
        labels: Sequence[str],
        patients: Sequence[str],
        keys: Sequence[bytes],
    ) -> None:
        self._mean, self._std = mean, std
        self._z = (embeddings - mean) / std
        self._squares = np.einsum("nk,nk->n", self._z, self._z, dtype=np.float64)
        self._paths, self._labels = paths, labels
        self._patients, self._keys = np.array(patients, object), np.array(keys, object)

    def __len__(self) -> int:
        return len(self._paths)

    def nearest(
        self, embedding: npt.NDArray[np.float32], n: int, *, key: bytes = b"", patient: str = ""
    ) -> tuple[Example, ...]:
        """Return the n nearest training images, the nearest first.

        `embedding` is (D,) float32. An image with the same `key` is skipped, under any path: it is the image itself.
        Images of the same `patient`, if known, are skipped too: they are not another case.
        """
        z = (embedding - self._mean) / self._std
        distances = np.sqrt(np.maximum(self._squares - 2 * (self._z @ z) + float(z @ z), 0))
        allowed = self._keys != key
        if patient:
            allowed &= self._patients != patient
        places = np.flatnonzero(allowed)
        order = places[np.argsort(distances[places], kind="stable")[:n]]
        return tuple(Example(self._paths[i], self._labels[i], float(distances[i])) for i in order)


def training_examples(run: Run, source: RunSource, head: SavedHead) -> TrainingExamples:
    """Collect the training images of a run from its cache.

    Raises
    ------
    CacheError
        If the embeddings cannot be read.
    """
    rows = [i for i, split in enumerate(run.predictions.splits) if split == "train"]
    paths, labels, patients = (
        [column[i] for i in rows]
        for column in (run.predictions.paths, run.predictions.labels, run.predictions.patients)
    )
    mean, std = (head.modules[0].get_buffer(f"0.{name}").numpy() for name in ("mean", "std"))
    return TrainingExamples(source.embeddings(paths), mean, std, paths, labels, patients, source.keys(paths))
