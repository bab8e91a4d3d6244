"""What is behind a run: the cache that it was trained from, and through it the images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hoarfrost.features.cache import DatasetTable, EmbeddingCache
from hoarfrost.features.errors import CacheError, ImageDecodeError
from hoarfrost.features.fingerprint import image_key
from hoarfrost.runs import Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hoarfrost.features.datasets.table import Content


@dataclass(frozen=True)
class RunSource:
    """The cached dataset of a run. `place` is where each of the run's images stands in `table`."""

    cache: EmbeddingCache
    table: DatasetTable
    place: Mapping[str, int]

    def embeddings(self, paths: Sequence[str]) -> "npt.NDArray[np.float32]":
        """Read the embeddings of some images, (n, D) float32."""
        return self.cache.embeddings(self._rows(paths))

    def keys(self, paths: Sequence[str]) -> list[bytes]:
        """Give the keys of some images: what their content was when it was embedded."""
        return [key.tobytes() for key in self.cache.keys(self._rows(paths))]

    def digest(self, paths: Sequence[str]) -> str:
        """Give the digest of some images and their embeddings, as a run records it of those that it used."""
        return self.cache.digest(self._rows(paths))

    def attributes(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Give the further columns of some images."""
        places = [self.place[path] for path in paths]
        return {name: [cells[i] for i in places] for name, cells in self.table.attributes.items()}

    def contents(self, paths: Sequence[str], reasons: dict[str, str]) -> "Iterator[tuple[str, Content]]":
        """Read the images that still are what was embedded, in the table's order.

        Parameters
        ----------
        paths : sequence of str
        reasons : dict
            Gets, by path, why an image is not given: it is not in the cache, gone, changed or cannot be read.

        Raises
        ------
        DatasetError
            If the place where they were is gone.
        """
        from hoarfrost.features.datasets import open_images

        known = sorted(set(paths) & self.place.keys(), key=self.place.__getitem__)
        key = dict(zip(known, self.keys(known), strict=True))
        reasons |= dict.fromkeys(set(paths) - set(known), "it is not in the cache")
        images = open_images(self.table.root, self.table.paths)
        for place, read in images.contents([self.place[path] for path in known]):
            path = self.table.paths[place]
            try:
                content = read()
            except ImageDecodeError as error:
                is_gone = isinstance(error.__cause__, FileNotFoundError)
                reasons[path] = "it is not there any more" if is_gone else str(error)
                continue
            if image_key(content) != key[path]:
                reasons[path] = "its content is not what was embedded"
                continue
            yield path, content

    def _rows(self, paths: Sequence[str]) -> "npt.NDArray[np.int64]":
        return self.table.rows[[self.place[path] for path in paths]]


@contextmanager
def opened_source(run: Run) -> Iterator[RunSource]:
    """Open the cache of a run, and its dataset in it.

    Raises
    ------
    CacheError
        If it is missing, damaged, of another fingerprint, or lacks images of the run or has others in their place; it says
        how to bring it back.
    """
    facts = run.config.embeddings
    again = "the same command"
    path = Path(facts.cache)
    if not path.exists():
        raise CacheError(f"The cache {path} is not there any more. Put it back there and run {again} again.")
    with EmbeddingCache(path) as cache:
        if cache.header.fingerprint.digest != facts.fingerprint:
            raise CacheError(
                f"The cache {path} holds other embeddings now (fingerprint {cache.header.fingerprint.digest[:12]}…, "
                f"not {facts.fingerprint[:12]}…). Put the one that the heads were trained from back there, "
                f"and run {again} again."
            )
        table = cache.dataset(run.config.dataset.name)
        place = {path: i for i, path in enumerate(table.paths) if table.rows[i] >= 0}
        missing = [path for path in run.predictions.paths if path not in place]
        if missing:
            raise CacheError(
                f"The dataset {table.name} in {path} is another than the heads were trained on: it lacks {len(missing):,} "
                f"of its images ({missing[0]} first). Extract those again, or train again."
            )
        source = RunSource(cache, table, place)
        if facts.digest and source.digest(run.predictions.paths) != facts.digest:
            # Names may be the same, and times kept: whether it is the same images only their digests tell.
            raise CacheError(
                f"The dataset {table.name} in {path} was extracted anew after the heads were trained, and some images are "
                "others now. Train again."
            )
        yield source
