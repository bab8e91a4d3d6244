"""What is behind a run: the cache that it was trained from, and through it the images."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hoarfrost.features.cache import DatasetTable, EmbeddingCache, open_caches
from hoarfrost.features.errors import CacheError, ImageDecodeError
from hoarfrost.features.facts import Facts
from hoarfrost.features.files import is_url, join
from hoarfrost.features.fingerprint import FILE_BYTES, image_key
from hoarfrost.runs import Run, read_run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hoarfrost.features.datasets.table import Content


@dataclass(frozen=True)
class RunSource:
    """The cached dataset of a run. `place` is the row in `table` of each of the run's images, by path.

    A cache may come from others, and its paths may be any: images are read from below the dataset's own folder, and from
    the folders and hosts in `images_from`.
    """

    cache: EmbeddingCache
    table: DatasetTable
    place: Mapping[str, int]
    images_from: Collection[str] = ()

    def embeddings(self, paths: Sequence[str], view: str) -> "npt.NDArray[np.float32]":
        """Read the embeddings of some images in a view, (n, D) float32."""
        return self.cache.embeddings(self.cache.view_rows(self._rows(paths), (view,))[:, 0])

    def keys(self, paths: Sequence[str]) -> list[bytes]:
        """Read the keys of some images: digests of their content when it was embedded."""
        return [key.tobytes() for key in self.cache.keys(self._rows(paths))]

    def digest(self, paths: Sequence[str], views: Sequence[str]) -> str:
        """Return the digest of some images and their embeddings in some views, as a run records it of what it used."""
        return self.cache.digest(self.cache.view_rows(self._rows(paths), views).ravel())

    def attributes(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """Return the further columns of some images."""
        places = [self.place[path] for path in paths]
        return {name: [cells[i] for i in places] for name, cells in self.table.attributes.items()}

    def facts(self, paths: Sequence[str]) -> Facts:
        """Return what the cache recorded of some images' files."""
        return self.cache.facts(self._rows(paths))

    def contents(self, paths: Sequence[str], reasons: dict[str, str]) -> "Iterator[tuple[str, Content]]":
        """Read the images whose content is still what was embedded, in the table's order.

        Of each other image, `reasons` gets why it is not read, by path: it is not in the cache, missing, changed or
        unreadable.

        Raises
        ------
        DatasetError
            If the folder or file that held them is missing.
        """
        from hoarfrost.features.datasets import open_images

        known = sorted(set(paths) & self.place.keys(), key=self.place.__getitem__)
        reasons |= dict.fromkeys(set(paths) - set(known), "it is not in the cache")
        outside = {path: where for path in known if (where := self._outside(path))}
        reasons |= {
            path: f"it is not below the dataset's own folder, but in {where} (report --images-from)"
            for path, where in outside.items()
        }
        known = [path for path in known if path not in outside]
        if not known:
            return
        key = dict(zip(known, self.keys(known), strict=True))
        images = open_images(self.table.root, self.table.paths)
        for place, read in images.contents([self.place[path] for path in known]):
            path = self.table.paths[place]
            try:
                content = read()
            except ImageDecodeError as error:
                is_missing = isinstance(error.__cause__, FileNotFoundError)
                reasons[path] = "the file no longer exists" if is_missing else str(error)
                continue
            if image_key(content)[:FILE_BYTES] != key[path][:FILE_BYTES]:  # whatever region of it was embedded
                reasons[path] = "its content is not what was embedded"
                continue
            yield path, content

    def _outside(self, path: str) -> str:
        """Return the folder or host that an image is in; empty if it may be read from there."""
        place = join(self.table.root, path)
        if is_url(place):
            url = urlsplit(place)
            names = {url.netloc, url.hostname, f"{url.scheme}://{url.netloc}"}
            return "" if names & set(self.images_from) else f"{url.scheme}://{url.netloc}"
        if os.path.isfile(self.table.root):
            return ""  # a row of an npz file
        place = os.path.abspath(place)
        own = [] if os.path.dirname(self.table.root) == self.table.root else [self.table.root]
        folders = [
            os.path.join(os.path.abspath(folder), "") for folder in (*own, *self.images_from) if not is_url(folder)
        ]
        return "" if any(place.startswith(folder) for folder in folders) else os.path.dirname(place)

    def _rows(self, paths: Sequence[str]) -> "npt.NDArray[np.int64]":
        return self.table.rows[[self.place[path] for path in paths]]


@contextmanager
def opened_source(run: Run, images_from: Collection[str] = ()) -> Iterator[RunSource]:
    """Open the cache of a run, and its dataset in it; for `images_from` see `RunSource`.

    Raises
    ------
    CacheError
        If the cache is missing, damaged, of another fingerprint, or does not hold the run's own images; the message says
        what to do.
    """
    facts, path = run.config.embeddings, Path(run.config.embeddings.cache)
    caches = [Path(one.cache) for one in facts.of_each]
    for cache_path in caches:
        if not cache_path.exists():
            raise CacheError(f"The cache {cache_path} no longer exists. Restore it and run the same command again.")
    with open_caches(caches, run.config.dataset.name) as cache:
        if cache.header.fingerprint.digest != facts.fingerprint:
            raise CacheError(
                f"The cache {path} now holds other embeddings (fingerprint {cache.header.fingerprint.digest[:12]}…, not "
                f"{facts.fingerprint[:12]}…). Restore the cache that the heads were trained from, and run the same command "
                "again."
            )
        table = cache.dataset(run.config.dataset.name)
        place = {path: i for i, path in enumerate(table.paths) if table.rows[i] >= 0}
        missing = [path for path in run.predictions.paths if path not in place]
        if missing:
            raise CacheError(
                f"The dataset {table.name} in {path} is not the one that the heads were trained on. Missing images: "
                f"{len(missing):,} ({missing[0]} first). Extract them again, or train again."
            )
        source = RunSource(cache, table, place, images_from)
        # Names and times may be unchanged while the images are not: only their digests show it.
        views = facts.views or (cache.header.own_view,)
        if facts.digest and source.digest(run.predictions.paths, views) != facts.digest:
            raise CacheError(
                f"The dataset {table.name} in {path} was extracted again after the heads were trained, and some images have "
                "changed. Train again."
            )
        yield source


def training_keys(directory: Path) -> frozenset[bytes]:
    """Return the keys of a run's training images, as `hoarfrost.features.fingerprint.image_key` makes them.

    Raises
    ------
    CacheError
        As `opened_source`.
    """
    run = read_run(directory)
    places = zip(run.predictions.paths, run.predictions.splits, strict=True)
    with opened_source(run) as source:
        return frozenset(source.keys([path for path, split in places if split == "train"]))
