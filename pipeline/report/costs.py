"""What an embedding costs: its bytes in the cache, and the seconds of its extraction where they are recorded."""

from dataclasses import dataclass
from pathlib import Path

from hoarfrost.features.cache import EmbeddingCache, row_bytes
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.report.words import NONE
from hoarfrost.runs import CacheFacts, RunConfig


@dataclass(frozen=True)
class Cost:
    """Of one image: the bytes of what heads look at, and the seconds of the extraction, None where they are not known.

    Bytes are None where there are no embeddings.
    """

    bytes_per_image: int | None
    seconds_per_image: float | None

    @property
    def seconds(self) -> str:
        """The seconds as text."""
        if self.bytes_per_image is None:
            return NONE
        return "not recorded" if self.seconds_per_image is None else f"{self.seconds_per_image:.3g} s"


def cost_of(config: RunConfig) -> Cost:
    """Return what an image of a run costs, of all its encoders together."""
    each = config.embeddings.of_each
    if not each:
        return Cost(None, None)
    n_bytes = sum(row_bytes(one.encoder.dim_of(one.layers)) * max(1, len(one.views)) for one in each)
    seconds = [_seconds(one, config.dataset.name) for one in each]
    known = [one for one in seconds if one is not None]
    return Cost(n_bytes, sum(known) if len(known) == len(seconds) else None)


def _seconds(facts: CacheFacts, dataset: str) -> float | None:
    """Return the seconds of an image's extraction; None if the cache is gone, is another one now, or did not record them."""
    if not Path(facts.cache).exists():
        return None
    try:
        with EmbeddingCache(Path(facts.cache)) as opened:
            is_same = opened.header.fingerprint.digest == facts.fingerprint
            found = opened.dataset(dataset).seconds_per_image if is_same else 0.0
    except HoarfrostError:
        return None
    return found or None
