"""A cohort's embeddings, as those that a head was trained on: of one encoder, or of several side by side."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hoarfrost.features.cache import EmbeddingCache, Header, open_caches
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.datasets.pseudonyms import Pseudonyms
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.extract import embed_like
from hoarfrost.features.extraction.plan import ExtractOptions, Progress
from hoarfrost.features.fingerprint import Fingerprint
from hoarfrost.features.origins import parts_of
from hoarfrost.inference.predict.dataset import workplace
from hoarfrost.runs import CacheFacts, RunHeads


@dataclass(frozen=True)
class _Source:
    """One of the encoders of a head: how it embeds, the cache to embed into, and the run's own cache of it."""

    header: Header
    cache: Path | None
    own: Path | None


@contextmanager
def embedded_cohort(
    data: Path | str, header: Header, heads: RunHeads | None, read: Callable[[Pseudonyms], Dataset], *,
    cache: Path | None, weights: str | None, options: ExtractOptions, on_progress: Callable[[Progress], None],
) -> Iterator[tuple[EmbeddingCache, str]]:  # fmt: skip
    """Embed a cohort by each encoder of a head, and open its embeddings; yield them, and the dataset's name.

    Raises
    ------
    HoarfrostError
        One of its children: the data, the weights, the cache; or if no image can be read.
    """
    with ExitStack() as stack:
        places, name = [], ""
        for source in _sources(header, heads, cache, weights):
            place, source_cache = stack.enter_context(workplace(source.cache, source.own, source.header))
            embedded = embed_like(
                data, place, source.header, weights=weights, source_cache=source_cache, options=options, read=read,
                is_listed=True, on_progress=on_progress,
            )  # fmt: skip
            if len(embedded.errors) == len(embedded.dataset):
                first, reason = next(iter(embedded.errors.items()))
                path = embedded.dataset.paths[first]
                raise HoarfrostError(f"{data}: no image could be read. The first: {path}: {reason}.")
            places.append(place)
            name = embedded.dataset.name
        yield stack.enter_context(open_caches(places, name)), name


def _sources(header: Header, heads: RunHeads | None, cache: Path | None, weights: str | None) -> list[_Source]:
    parts = parts_of(header.fingerprint.preprocessing)
    if not parts:
        return [_Source(header, cache, None if heads is None else Path(heads.config.embeddings.cache))]
    if heads is None:
        raise HoarfrostError(
            "The head takes the embeddings of several encoders together, and a head file does not record where the weights "
            "of each are. Name its run with --run."
        )
    if weights is not None:
        raise HoarfrostError(
            "--weights names the weights of one encoder, but the head takes the embeddings of several. Omit it."
        )
    several = heads.config.embeddings.several
    return [
        _Source(_header(facts, int(part["dim"])), _numbered(cache, number), Path(facts.cache))
        for number, (facts, part) in enumerate(zip(several, parts, strict=True), start=1)
    ]


def _header(facts: CacheFacts, dim: int) -> Header:
    """Return the header of a cache from what a run records of it."""
    made_by = Fingerprint(
        facts.backbone, facts.weights_sha256, facts.preprocessing, facts.precision, tuple(facts.layers)
    )
    return Header(made_by, dim, facts.weights, facts.weights_origin, weights_path=facts.weights_path, views=facts.views)


def _numbered(cache: Path | None, number: int) -> Path | None:
    """Return the cache of one of several encoders: the first has the name that was given, the others have a number."""
    if cache is None or number == 1:
        return cache
    return cache.with_name(f"{cache.stem}-{number}{cache.suffix}")
