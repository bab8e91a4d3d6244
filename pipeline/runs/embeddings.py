"""What a run records of its embeddings: the cache that they are from, or several."""

from dataclasses import dataclass
from typing import Any

from hoarfrost.features.decoding.views import map_cells
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.features.origins import encoder_of


@dataclass(frozen=True)
class CacheFacts:
    """What a cache records of its embeddings, and the digest of those that were used.

    `weights_path` is where a checkpoint was; empty if the weights were not a file. `views` are those that the selected head
    looks at; empty for the encoder's own. `layers` are empty for the encoder's last. `drift` is that of 8-bit integers.
    """

    cache: str
    fingerprint: str
    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, Any]
    precision: str
    digest: str = ""
    weights_origin: str = ""
    weights_path: str = ""
    views: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    drift: Drift | None = None

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder of this name; raises EncoderError if this version does not have it."""
        return encoder_of(self.backbone, self.preprocessing)

    @property
    def map_cells(self) -> int:
        """The number of cells along each side of the maps that explain predictions; raises EncoderError without maps."""
        return map_cells(self.views, self.encoder)


@dataclass(frozen=True)
class EmbeddingFacts(CacheFacts):
    """Where the embeddings came from.

    `several` are the facts of each cache, if the embeddings of several encoders are side by side. `n_unseen` counts images
    whose embeddings were imported and whose bytes are not known.
    """

    several: tuple[CacheFacts, ...] = ()
    n_unseen: int = 0

    @property
    def of_each(self) -> tuple[CacheFacts, ...]:
        """The facts of each cache: of the only one, or of several side by side; none where only predictions are known."""
        return self.several or ((self,) if self.fingerprint else ())
