"""Embeddings from elsewhere into a cache, where `train` reads them like its own."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import (
    CacheWriter,
    DatasetTable,
    EmbeddedFile,
    EmbeddingCache,
    Embeddings,
    Header,
    Keys,
    Mask,
    are_unseen,
    unseen_key,
)
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets import Dataset, check_classes, hints, read_listed
from hoarfrost.features.datasets.conflicts import warn_of_conflicts
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.datasets.table import Content as ImageContent
from hoarfrost.features.datasets.table import file_images, split_of
from hoarfrost.features.errors import CacheError, DatasetError, ImageDecodeError, Reason
from hoarfrost.features.exchange.content import Content, Samples, samples_of
from hoarfrost.features.exchange.formats import read_content
from hoarfrost.features.exchange.matching import check_complete, matched
from hoarfrost.features.exchange.own import OwnDataset, own_dataset
from hoarfrost.features.extraction.plan import ImageRecords
from hoarfrost.features.facts import ImageFacts
from hoarfrost.features.fingerprint import Fingerprint, image_key
from hoarfrost.features.origins import UNNAMED, elsewhere_name, elsewhere_steps

NO_EMBEDDING, NOT_FINITE = "no embedding in the imported file", "the imported embedding is not finite (NaN or infinity)"
NOT_KNOWN, MADE_ELSEWHERE = "not known", "made elsewhere"
READ_THREADS, ROWS_AT_ONCE = 2, 4096
PLURALS = {"labels": "label", "splits": "split", "patients": "patient"}  # as arrays are often named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportOptions:
    """How embeddings are imported.

    Attributes
    ----------
    name : str or None
        The dataset's name in the cache.
    encoder_name : str
        The encoder that made the embeddings, as the user says. Embeddings of one name and dimension count as comparable.
    id_column : str or None
        The dataset's column of the names in the file; by default its paths.
    on_error : "fail" or "skip"
        What to do about images without an embedding, and embeddings without an image.
    table : TableOptions
        How the dataset's table is read.
    """

    name: str | None = None
    encoder_name: str = ""
    id_column: str | None = None
    on_error: str = "fail"
    table: TableOptions = field(default_factory=TableOptions)


@dataclass(frozen=True)
class ImportSummary:
    """What was imported; `cache import --json` prints it.

    `images` = `imported` + `failed`. `bytes_known` counts imported images whose files are here, by whose bytes identical
    files are found. `ignored` counts embeddings that no image of the dataset has. `errors` are paths and reasons. `is_own`
    states that `cache export` wrote the file.
    """

    images: int
    imported: int
    failed: int
    ignored: int
    dim: int
    encoder: str
    pooling: str
    matched_by: str
    bytes_known: int
    source: str
    source_sha256: str
    dataset: str
    cache: str
    fingerprint: str
    is_own: bool
    errors: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Read:
    """A file that was read: its place, its SHA-256 (hex), and what it holds."""

    path: Path
    sha256: str
    content: Content


def import_embeddings(
    source: Path, cache: Path, data: Path | str | None = None, options: ImportOptions | None = None
) -> ImportSummary:
    """Import embeddings that another program made, or that `cache export` wrote, into a cache.

    Parameters
    ----------
    source : Path
        An npz, Parquet or h5ad file; a slide's .h5 or a folder of them; or eva's manifest.csv. See
        `hoarfrost.features.exchange.formats`.
    cache : Path
        The cache's HDF5 file; created if it is missing.
    data : Path or str, optional
        The dataset that the embeddings are of, as `hoarfrost.features.datasets.read_dataset` reads it. Not needed if the
        file has labels of its own.
    options : ImportOptions, optional

    Raises
    ------
    HoarfrostError
        Its subclass says what is wrong: the file, the dataset or the cache. Nothing is written then.
    """
    options = options or ImportOptions()
    read = _Read(source, _digest(source), read_content(source))
    own = own_dataset(str(source), read.content)
    if own is None:
        return _import_foreign(read, cache, data, options)
    if data is not None:
        raise DatasetError(
            f"{source} was exported by hoarfrost, with labels, splits and patients. Omit --dataset to import it as it is."
        )
    return _import_own(read, cache, own, options)


def _import_own(read: _Read, cache: Path, own: OwnDataset, options: ImportOptions) -> ImportSummary:
    table, header = replace(own.table, name=options.name or own.table.name), own.header
    _write(cache, header, table, own.keys, own.embeddings, own.facts)
    return _summary(
        read, cache, header, table, own.keys, encoder=header.fingerprint.encoder.title, matched_by="paths", is_own=True
    )


def _import_foreign(read: _Read, cache: Path, data: Path | str | None, options: ImportOptions) -> ImportSummary:
    source = str(read.path)
    samples = samples_of(source, read.content)
    dataset = (
        _own_table(read, samples.ids, options)
        if data is None
        else read_listed(data, name=options.name, options=options.table)
    )
    check_classes(dataset)
    found = matched(source, samples.ids, dataset, options.id_column)
    if options.on_error == "fail":
        check_complete(source, found, dataset)
    embeddings = np.full((len(dataset), samples.embeddings.shape[1]), np.nan, np.float32)
    embeddings[found.rows >= 0] = samples.embeddings[found.rows[found.rows >= 0]]
    records = _records(source, dataset, embeddings, found.rows >= 0)
    header = _header(read, samples, options)
    for hint in hints(dataset):
        logger.warning("%s", hint)
    warn_of_conflicts(dataset, records.keys, records.readable)
    table = replace(records.for_dataset(dataset), root=dataset.images.location)
    _write(cache, header, table, records.keys, {header.own_view: embeddings})
    return _summary(
        read, cache, header, table, records.keys, encoder=options.encoder_name or UNNAMED, matched_by=found.rule,
        ignored=len(found.unused), pooling=samples.pooling,
    )  # fmt: skip


def _header(read: _Read, samples: Samples, options: ImportOptions) -> Header:
    """Return what is known of embeddings made elsewhere. Without the encoder's name, only those of this very file compare."""
    dim = samples.embeddings.shape[1]
    made_by = Fingerprint(
        backbone=elsewhere_name(options.encoder_name),
        weights_sha256="" if options.encoder_name else read.sha256,
        preprocessing=elsewhere_steps(dim, samples.pooling),
        precision=NOT_KNOWN,
    )
    return Header(made_by, dim, MADE_ELSEWHERE, f"file {read.path.name} with SHA-256 {read.sha256}")


def _own_table(read: _Read, ids: Sequence[str], options: ImportOptions) -> Dataset:
    """Return the dataset that the file itself describes, as eva's manifests do."""
    columns = {
        PLURALS.get(name, name): list(cells)
        for name, cells in read.content.texts.items()
        if len(cells) == len(ids) and cells != ids
    }
    for name in ("label", "labels"):  # classes as numbers
        if name in read.content.numbers:
            columns.setdefault("label", [str(number) for number in read.content.numbers[name].tolist()])
    if "label" not in columns:
        raise DatasetError(
            f"{read.path}: the file has no labels. Pass the dataset that the embeddings are of: --dataset CSV, with "
            "the columns path,label[,split][,patient]."
        )
    splits = [split_of(cell) for cell in columns.pop("split", ())]
    if splits and not all(splits):
        raise DatasetError(f"{read.path}: a split is none of train, val and test. Correct it, or pass --dataset CSV.")
    labels, patients = columns.pop("label"), columns.pop("patient", None)
    root = str(read.path.parent if read.path.is_file() else read.path)
    return Dataset(
        options.name or read.path.resolve().stem, str(read.path), Texts.of(ids), Texts.of(labels),
        Texts.of(splits) if splits else None,
        None if patients is None else Texts.of(patients), file_images(root, Texts.of(ids)),
        {name: Texts.of(cells) for name, cells in columns.items()},
    )  # fmt: skip


def _records(source: str, dataset: Dataset, embeddings: Embeddings, is_there: Mask) -> ImageRecords:
    """Return each image's key: of its bytes where its file is here, else of its path and embedding; and what is wrong."""
    records, is_finite = ImageRecords(len(dataset)), np.isfinite(embeddings).all(axis=1)
    reasons = {place: NOT_FINITE if is_there[place] else NO_EMBEDDING for place in np.flatnonzero(~is_finite).tolist()}
    if len(reasons) == len(dataset):
        raise DatasetError(
            f"{source}: no image has a finite embedding, so nothing was imported. The file is probably damaged."
        )
    if len(zeros := np.flatnonzero(is_finite & ~embeddings.any(axis=1))):
        logger.warning(
            "%s: %s embeddings are all zeros (first: %s), so heads cannot learn from these images. Check how they were made.",
            source, f"{len(zeros):,}", dataset.paths[int(zeros[0])],
        )  # fmt: skip
    records.errors = {place: Reason(text, text) for place, text in reasons.items()}
    records.readable[:] = is_finite
    stamps = dataset.images.stamps(of_urls=False)
    here = np.flatnonzero(is_finite & ~stamps.missing & (stamps.sizes >= 0)).tolist()
    records.set_stamps(stamps)
    for place in np.flatnonzero(is_finite).tolist():
        records.keys[place] = np.frombuffer(unseen_key(dataset.paths[place], embeddings[place]), np.uint8)
    with ThreadPoolExecutor(READ_THREADS, "read") as pool:
        for place, key in pool.map(_key_of, dataset.images.contents(here)):
            if key is not None:
                records.keys[place] = np.frombuffer(key, np.uint8)
    return records


def _key_of(image: tuple[int, Callable[[], ImageContent]]) -> tuple[int, bytes | None]:
    """Return an image's place, and the key of its bytes; None if it cannot be read."""
    place, read = image
    try:
        return place, image_key(read())
    except (ImageDecodeError, OSError):
        return place, None


def _write(
    cache: Path, header: Header, table: DatasetTable, keys: Keys, embeddings: Mapping[str, Embeddings],
    facts: Sequence[ImageFacts | None] = (),
) -> None:  # fmt: skip
    """Write embeddings (n, D) by view, and the table, into the cache; other embeddings of the same images are refused."""
    _check_same(cache, header, table, keys, embeddings)
    with CacheWriter(cache, header, table.name, root=table.root) as writer:
        for view, rows in embeddings.items():
            code = writer.header.code_of(view)
            has_view = (table.rows >= 0) & ~np.isnan(rows).all(axis=1)
            new: dict[bytes, int] = {}
            for place in np.flatnonzero(has_view).tolist():
                new.setdefault(keys[place].tobytes() + code, place)
            places = [place for key, place in new.items() if key not in writer]
            for first in range(0, len(places), ROWS_AT_ONCE):
                some = places[first : first + ROWS_AT_ONCE]
                of_images = [facts[one] for one in some] if facts else [None] * len(some)
                files = [
                    EmbeddedFile(
                        table.paths[at], int(table.sizes[at]), int(table.mtimes_ns[at]), keys[at].tobytes() + code, one
                    )
                    for at, one in zip(some, of_images, strict=True)
                ]
                writer.append(files, rows[some])
        writer.finish(table, keys)


def _check_same(
    cache: Path, header: Header, table: DatasetTable, keys: Keys, embeddings: Mapping[str, Embeddings]
) -> None:
    """Refuse to import other embeddings of images that the cache has already."""
    if not cache.is_file():
        return
    with EmbeddingCache(cache) as there:
        if there.header.fingerprint != header.fingerprint:
            return  # the writer says what differs
        for view, rows in embeddings.items():
            found = np.where(table.rows >= 0, there.rows_of(keys, view), -1)
            known = np.flatnonzero((found >= 0) & ~np.isnan(rows).all(axis=1))
            other = known[(there.embeddings(found[known]) != rows[known]).any(axis=1)]
            if len(other):
                raise CacheError(
                    f"{cache} has other embeddings of {len(other):,} of these images (first: "
                    f"{table.paths[int(other[0])]}), so nothing was imported. Import into another --cache; or pass "
                    "another --encoder-name, if another encoder or other settings made them."
                )


def _summary(
    read: _Read, cache: Path, header: Header, table: DatasetTable, keys: Keys, *, encoder: str, matched_by: str,
    ignored: int = 0, pooling: str = "", is_own: bool = False,
) -> ImportSummary:  # fmt: skip
    readable = table.rows >= 0
    return ImportSummary(
        images=len(table), imported=int(readable.sum()), failed=int((~readable).sum()), ignored=ignored, dim=header.dim,
        encoder=encoder, pooling=pooling, matched_by=matched_by, bytes_known=int((readable & ~are_unseen(keys)).sum()),
        source=str(read.path), source_sha256=read.sha256, dataset=table.name, cache=str(cache),
        fingerprint=header.fingerprint.digest, is_own=is_own,
        errors=tuple((table.paths[place], table.errors[place]) for place in np.flatnonzero(~readable).tolist()),
    )  # fmt: skip


def _digest(source: Path) -> str:
    """Return the SHA-256 (hex) of a file; of a folder, or a manifest and its files, that of names and contents."""
    is_many = source.is_dir() or source.suffix.lower() == ".csv"
    folder = source if source.is_dir() else source.parent
    files = sorted(one for one in folder.rglob("*") if one.suffix in {".h5", ".pt", ".csv"}) if is_many else [source]
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                of_file = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read: {error.strerror}. Pass a file of embeddings.") from error
        if not is_many:
            return of_file.hexdigest()
        digest.update(f"{path.relative_to(folder)} {of_file.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
