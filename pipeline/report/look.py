"""The part of the page that shows images: which cases to look at, and the map of all embeddings."""

import logging
from base64 import b64encode
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from hoarfrost.features.errors import CacheError
from hoarfrost.inference.sources import opened_source
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.gallery import CaseGroup, Pictures, groups_of, read_pictures
from hoarfrost.report.map import EmbeddingMap, map_of
from hoarfrost.runs import Run

if TYPE_CHECKING:
    from hoarfrost.inference.explain import Explainer

logger = logging.getLogger(__name__)

LEFT_OUT = "The pictures were left out (--no-images)."
NO_MAP = "It was left out (--no-map)."


@dataclass(frozen=True)
class ImagesSection:
    """What the page shows of images. `map` is None where there is none, and `no_map` says why."""

    groups: tuple[CaseGroup, ...]
    pictures: Pictures
    map: EmbeddingMap | None
    no_map: str = ""

    @cached_property
    def script(self) -> str:
        """The map's script; the same in every report."""
        return Path(__file__).with_name("map.js").read_text(encoding="utf-8")

    @property
    def script_hash(self) -> str:
        """What the page's policy allows it by."""
        return f"sha256-{b64encode(sha256(self.script.encode()).digest()).decode()}"


def look_of(
    run: Run, *, with_images: bool = True, with_map: bool = True, explainer: "Explainer | None" = None
) -> ImagesSection:
    """Collect what the page shows of images.

    Parameters
    ----------
    run : Run
    with_images : bool
        False leaves out all pixels: cases are named, and nothing of an image is read.
    with_map : bool
        False leaves out the map.
    explainer : Explainer, optional
        Of the selected head: the errors are shown with maps of what speaks for a class.

    Returns
    -------
    ImagesSection
        Where the cache or the images are not there any more, it says so, and how to bring them back.
    """
    groups = groups_of(run, evaluation_of(run, by_image=True))
    pictures = None if with_images else Pictures(note=LEFT_OUT)
    try:
        with opened_source(run) as source:
            pictures = pictures or read_pictures(source, groups, explainer)
            found = map_of(run, source) if with_map else None
            look = ImagesSection(groups, pictures, found, "" if with_map else NO_MAP)
    except CacheError as error:
        unchecked = f"There are no pictures, as nothing tells whether they are still the same. {error}"
        look = ImagesSection(groups, pictures or Pictures(note=unchecked), None, str(error))
    if explainer is not None and not look.pictures.maps:
        reason = look.pictures.note or next(iter(look.pictures.reasons.values()), "there is no error to show")
        logger.warning("--explain: the report has no map of what speaks for a class: %s", reason)
    return look
