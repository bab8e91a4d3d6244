"""The images that a run learned from, as far as its folder and its cache still hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints
from hoarfrost.experiment.duplicates import MOST_COMPARED
from hoarfrost.experiment.task import mostly_known
from hoarfrost.features.errors import CacheError
from hoarfrost.features.facts import Facts
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.runs import Run


@dataclass(frozen=True)
class SeenImages:
    """Images that training saw: those of all splits but the test split.

    Attributes
    ----------
    paths : tuple of str
    patients : tuple of str or None
        None where they are unknown.
    y : ndarray (n,) or (n, C) int64
    keys : tuple of bytes or None
        Digests of the images; None if the run's cache could not be read, as `reason` states.
    x : ndarray (n, D) float32 or None
        Embeddings of the first view, of the last layer; also None of very many images.
    sizes : ndarray (n,) int64
        Of the files in bytes, -1 where unknown; empty without the cache.
    attributes : mapping
        Further columns; empty without the cache.
    facts : Facts or None
        What the cache recorded of the files; None unless it did so for nearly all of them.
    """

    paths: tuple[str, ...]
    patients: tuple[str, ...] | None
    y: Ints
    keys: tuple[bytes, ...] | None = None
    x: npt.NDArray[np.float32] | None = None
    sizes: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    attributes: Mapping[str, list[str]] = field(default_factory=dict)
    reason: str = ""
    facts: Facts | None = None

    def formats(self) -> list[str]:
        """Return the ending of each path."""
        return formats_of(self.paths)


def formats_of(paths: "tuple[str, ...] | list[str]") -> list[str]:
    """Return the ending of each path, "PNG"; "none" for a path without one."""
    return [PurePath(path.partition("#")[0]).suffix.lstrip(".").upper() or "none" for path in paths]


def seen_by(run: Run, n_others: int) -> SeenImages:
    """Collect the images that a run learned from.

    Parameters
    ----------
    run : Run
    n_others : int
        How many images they will be compared with: embeddings of very many are not read.
    """
    is_seen = [split != "test" for split in run.predictions.splits]
    paths = tuple(compress(run.predictions.paths, is_seen))
    patients = tuple(compress(run.predictions.patients, is_seen))
    seen = SeenImages(paths, patients if run.config.dataset.n_patients is not None else None, run.y_true()[is_seen])
    try:
        with opened_source(run) as source:
            return _with_source(seen, run, source, with_embeddings=len(paths) + n_others <= MOST_COMPARED)
    except CacheError as error:
        return SeenImages(seen.paths, seen.patients, seen.y, reason=str(error))


def _with_source(seen: SeenImages, run: Run, source: RunSource, *, with_embeddings: bool) -> SeenImages:
    view = (run.config.embeddings.views or source.cache.views)[0]
    x = source.embeddings(seen.paths, view)[:, last_layer(run)] if with_embeddings else None
    sizes = source.table.sizes[[source.place[path] for path in seen.paths]]
    return SeenImages(
        seen.paths, seen.patients, seen.y, tuple(source.keys(seen.paths)), x, sizes, source.attributes(seen.paths),
        facts=mostly_known(source.facts(seen.paths)),
    )  # fmt: skip


def last_layer(run: Run) -> slice:
    """Return the columns of the encoder's last layer."""
    facts = run.config.embeddings
    columns = facts.encoder.columns_of(facts.layers) if facts.layers else {}
    return columns[max(columns)] if columns else slice(None)
