"""The part of the page that shows images: which cases to look at, and the map of all embeddings."""

import logging
from base64 import b64encode
from collections.abc import Collection
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

NO_IMAGES = "This report is without images (--no-images)."
NO_MAP = "This report was written with --no-map."
NO_EMBEDDINGS = "Predictions were evaluated without their images."
NOT_KEPT = "No cache of the evaluated images was kept (evaluate DATA --cache FILE keeps it)."


@dataclass(frozen=True)
class ImagesSection:
    """What the page shows of images. If `map` is None, `no_map` is the reason."""

    groups: dict[str, CaseGroup]
    pictures: Pictures
    map: EmbeddingMap | None
    no_map: str = ""

    @cached_property
    def script(self) -> str:
        """The script of the map; the same in every report."""
        return Path(__file__).with_name("map.js").read_text(encoding="utf-8")

    @property
    def script_hash(self) -> str:
        """Its hash, by which the page's policy allows it."""
        return f"sha256-{b64encode(sha256(self.script.encode()).digest()).decode()}"


def look_of(
    run: Run, *, with_images: bool = True, with_map: bool = True, explainer: "Explainer | None" = None,
    images_from: Collection[str] = (),
) -> ImagesSection:  # fmt: skip
    """Collect what the page shows of images.

    Parameters
    ----------
    run : Run
    with_images : bool
        False omits all pixels: cases are named, and images are not read.
    with_map : bool
        False omits the map.
    explainer : Explainer, optional
        Of the selected head, for maps of the errors.
    images_from : collection of str
        Folders and hosts that images may be read from, besides the dataset's own folder.

    Returns
    -------
    ImagesSection
        If the cache or the images are missing, with the reason and how to bring them back.
    """
    groups = groups_of(run, evaluation_of(run, by_image=True))
    pictures = None if with_images else Pictures(note=NO_IMAGES)
    if run.external is not None and not run.config.embeddings.cache:
        why = NOT_KEPT if run.config.embeddings.fingerprint else NO_EMBEDDINGS
        pictures = pictures or Pictures(note=f"The report has no images. {why}")
        return ImagesSection(groups, pictures, None, why)
    try:
        with opened_source(run, images_from) as source:
            pictures = pictures or read_pictures(source, groups.values(), explainer)
            found = map_of(run, source) if with_map else None
            look = ImagesSection(groups, pictures, found, "" if with_map else NO_MAP)
    except CacheError as error:
        unchecked = f"Images are not shown, because they cannot be checked for changes. {error}"
        look = ImagesSection(groups, pictures or Pictures(note=unchecked), None, str(error))
    if explainer is not None and not look.pictures.maps:
        reason = look.pictures.note or next(iter(look.pictures.reasons.values()), "the head made no error")
        logger.warning("--explain: the report does not have explanation maps: %s", reason)
    return look
