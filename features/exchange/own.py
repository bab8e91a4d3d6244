"""A cache's dataset as columns for other programs, with all that is needed to read it back unchanged."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hoarfrost.features.cache import DatasetTable, EmbeddingCache, Embeddings, Header, Keys
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.exchange.content import Content
from hoarfrost.features.facts import Facts, FileHeader, ImageFacts, Kinds, kind_text
from hoarfrost.features.fingerprint import KEY_BYTES, Fingerprint

FORMAT, FORMAT_VERSION = "hoarfrost-embeddings", 1
EMBEDDINGS, FACTS = "embeddings", "facts"
RESERVED = frozenset(
    {"path", "label", "split", "patient", "error", "digest", "size", "mtime_ns", "hoarfrost", EMBEDDINGS, FACTS}
)


@dataclass(frozen=True)
class OwnDataset:
    """A dataset that was exported: its header and table, its images' keys (n, 32) and facts, and embeddings (n, D) by view.

    The table's `rows` are 0 for readable images, else -1. An image without a view has NaN there.
    """

    header: Header
    table: DatasetTable
    keys: Keys
    facts: Sequence[ImageFacts | None]
    embeddings: Mapping[str, Embeddings]


def content_of(cache: EmbeddingCache, table: DatasetTable) -> Content:
    """Return a dataset of a cache as columns, one entry per image of the dataset, with NaN where there is no embedding."""
    readable = np.flatnonzero(table.rows >= 0)
    keys = cache.keys(table.rows[readable])
    digests = [""] * len(table)
    for place, key in zip(readable.tolist(), keys, strict=True):
        digests[place] = key.tobytes().hex()
    attributes = {_column(name): name for name in table.attributes}
    texts = {name: list(column) for name, column in table.texts().items()} | {"digest": digests}
    texts |= {column: list(table.attributes[name]) for column, name in attributes.items()}
    facts = [""] * len(table)
    for place, of_image in zip(readable.tolist(), cache.facts(table.rows[readable]).images(), strict=True):
        facts[place] = "" if of_image is None else _facts_to_text(of_image)
    texts |= {FACTS: facts} if any(facts) else {}
    arrays, views = {}, {}
    for number, view in enumerate(cache.views):
        rows = cache.rows_of(keys, view)
        found = np.full((len(table), cache.header.dim), np.nan, np.float32)
        found[readable[rows >= 0]] = cache.embeddings(rows[rows >= 0])
        name = EMBEDDINGS if number == 0 else f"{EMBEDDINGS}_{number}"
        arrays[name], views[name] = found, view
    header = cache.header
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": header.fingerprint.digest,
        "header": asdict(header),
        "dataset": {
            **{"name": table.name, "source": table.source, "root": table.root, "created": table.created},
            "seconds_per_image": table.seconds_per_image,
        },
        "attributes": attributes,
        "has_facts": FACTS in texts,
        "views": views,
    }
    return Content(texts, arrays, {"size": table.sizes, "mtime_ns": table.mtimes_ns}, metadata=json.dumps(description))


def _facts_to_text(facts: ImageFacts) -> str:
    """Return an image's facts as JSON."""
    header = {**facts.header._asdict(), "kinds": facts.header.kinds._asdict()}
    return json.dumps({**facts._asdict(), "header": header}, ensure_ascii=False)


def _facts_from_text(text: str) -> ImageFacts | None:
    if not text:
        return None
    values = json.loads(text)
    header = values["header"]
    kinds = Kinds(**{name: kind_text(text) for name, text in header["kinds"].items()})
    mean, sd, skewness, kurtosis = map(float, values["moments"])
    of_file = FileHeader(int(header["width"]), int(header["height"]), int(header["bits"]), kinds)
    return ImageFacts(of_file, int(values["channels"]), (mean, sd, skewness, kurtosis))


def _column(attribute: str) -> str:
    """Return the column that an attribute is written as: its name, unless that has another meaning."""
    return f"attribute {attribute}" if attribute in RESERVED or attribute.startswith(EMBEDDINGS) else attribute


def own_dataset(source: str, content: Content) -> OwnDataset | None:
    """Return the dataset that `content_of` described; None if another program wrote the file.

    Raises
    ------
    DatasetError
        If it is of a newer version, or damaged.
    """
    if not content.metadata:
        return None
    try:
        description = json.loads(content.metadata)
        if description["format"] != FORMAT:
            return None
        if description["format_version"] > FORMAT_VERSION:
            raise DatasetError(f"{source} was exported by a newer hoarfrost. Upgrade hoarfrost to import it.")
        return _described(content, description)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{source}: the exported embeddings are damaged: {error}. Export them again.") from error


def _described(content: Content, description: Mapping[str, Any]) -> OwnDataset:
    stored = description["header"]
    fingerprint = Fingerprint(**{**stored["fingerprint"], "layers": tuple(stored["fingerprint"]["layers"])})
    if fingerprint.digest != description["fingerprint"]:
        raise ValueError("the fingerprint does not match its encoder, weights, preprocessing and precision")
    header = Header(**{**stored, "fingerprint": fingerprint, "views": tuple(stored["views"])})
    texts = {name: list(column) for name, column in content.texts.items()}
    paths = texts["paths" if "paths" in texts else "path"]
    n, digests = len(paths), texts["digest"]
    keys = np.zeros((n, KEY_BYTES), np.uint8)
    for place, digest in enumerate(digests):
        if digest:
            keys[place] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    dataset = description["dataset"]
    table = DatasetTable(
        name=dataset["name"], source=dataset["source"], root=dataset["root"], created=dataset["created"],
        seconds_per_image=dataset.get("seconds_per_image", 0.0),
        paths=Texts.of(paths), rows=np.array([0 if one else -1 for one in digests], np.int64),
        labels=Texts.of(texts["label"]),
        errors=Texts.of(texts["error"]), sizes=content.numbers["size"], mtimes_ns=content.numbers["mtime_ns"],
        splits=Texts.of(texts["split"]) if "split" in texts else None,
        patients=Texts.of(texts["patient"]) if "patient" in texts else None,
        attributes={name: Texts.of(texts[column]) for column, name in description["attributes"].items()},
    )  # fmt: skip
    embeddings = {view: content.arrays[name] for name, view in description["views"].items()}
    if any(rows.shape != (n, header.dim) for rows in embeddings.values()) or {*map(len, texts.values())} != {n}:
        raise ValueError("its columns have different lengths, or its embeddings another dimension")
    facts = [_facts_from_text(text) for text in texts[FACTS]] if description.get("has_facts") else [None] * n
    Facts.of(facts)  # numbers that a cache cannot hold are an error here
    return OwnDataset(header, table, keys, facts, embeddings)
