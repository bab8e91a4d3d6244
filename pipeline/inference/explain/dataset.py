"""Explain images, wherever they are, into a folder of pictures, and a JSON file of what they show."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from hoarfrost.features.datasets import Dataset, read_unlabelled
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.decoding.formats import FRAME_MARK
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.decoding.pictures import check_sheet, fitted, write_sheet
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, RunError
from hoarfrost.features.extraction.plan import Progress
from hoarfrost.features.fingerprint import image_key
from hoarfrost.inference.explain.cases import Cases
from hoarfrost.inference.explain.examples import Example
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer, open_explainer
from hoarfrost.inference.explain.pictures import SHEET_COLUMNS, SHEET_ROWS, SIDE, Pixels, Shown, card, sheet_of
from hoarfrost.inference.predict import run_head
from hoarfrost.runs import read_heads

DOCUMENT = "explanations.json"
N_EXAMPLES = 5
AT_ONCE = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explained:
    """What was found of one image. `map` sums to `evidence`, for the class `subject`; `file` is its picture."""

    path: str
    file: str
    called: str
    probabilities: dict[str, float]
    calibrated: dict[str, float]
    subject: str
    evidence: float
    map: tuple[tuple[float, ...], ...]
    nearest: tuple[Example, ...]


@dataclass(frozen=True)
class ExplainSummary:
    """What was explained; `explain --json` prints it. `notes` say what is less than was asked for."""

    images: int
    explained: int
    failed: int
    head: str
    classes: tuple[str, ...]
    output: str
    contact_sheet: str | None
    fingerprint: str
    weights: str
    seconds: float
    notes: tuple[str, ...]
    explanations: tuple[Explained, ...]
    errors: tuple[tuple[str, str], ...]


def explain_dataset(
    data: Path | str,
    output: Path,
    *,
    run: Path,
    head: str | None = None,
    class_name: str | None = None,
    contact_sheet: Path | None = None,
    n_examples: int = N_EXAMPLES,
    weights: str | None = None,
    device: str = "auto",
    max_pixels: int | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExplainSummary:
    """Write a picture of what speaks for a class, and where, for each image.

    Parameters
    ----------
    data : Path or str
        What `hoarfrost.features.datasets.read_unlabelled` takes.
    output : Path
        A folder, new or empty: `NUMBER-NAME.png` for each image, and `explanations.json`.
    run : Path
        The run folder.
    head : str, optional
        Which of the run's heads; by default the selected one.
    class_name : str, optional
        The class to map the evidence for; by default see `Explainer.explain`.
    contact_sheet : Path, optional
        A PNG of up to 48 images from all over the dataset.
    n_examples : int
        How many of the nearest training images are shown.
    weights, device, max_pixels
        See `open_explainer`.
    on_progress : callable
        Called after each batch.

    Raises
    ------
    HoarfrostError
        One of its children: dataset, run, weights, fingerprint, output; or if no image can be read.
    """
    started = time.monotonic()
    _check_output(output)
    if contact_sheet is not None:
        check_sheet(contact_sheet)
    saved = run_head(read_heads(run), head)
    explainer = open_explainer(saved, weights=weights, device=device, max_pixels=max_pixels)
    number = None if class_name is None else explainer.class_number(class_name)
    notes = [explainer.note] if explainer.note else []
    with ExitStack() as stack:
        cases = Cases.opened(run, explainer, n_examples, notes, stack)
        dataset = read_unlabelled(data, _pseudonyms(run))
        with _written_whole(output) as folder:
            work = _Work(dataset, explainer, number, cases, folder, with_sheet=contact_sheet is not None)
            work.run(on_progress)
            summary = _summary(work, output, contact_sheet, notes, time.monotonic() - started)
            document = json.dumps(asdict(summary), indent=1, allow_nan=False)
            (folder / DOCUMENT).write_text(document + "\n", encoding="utf-8")
            if contact_sheet is not None:
                write_sheet(contact_sheet, sheet_of(work.sheet))
    for note in notes:
        logger.warning("%s", note)
    return summary


def _summary(
    work: "_Work", output: Path, contact_sheet: Path | None, notes: Sequence[str], seconds: float
) -> ExplainSummary:
    head = work.explainer.predictor.head
    return ExplainSummary(
        images=len(work.dataset),
        explained=len(work.explained),
        failed=len(work.errors),
        head=head.spec.name,
        classes=head.names,
        output=str(output),
        contact_sheet=None if contact_sheet is None else str(contact_sheet),
        fingerprint=head.header.fingerprint.digest,
        weights=head.header.weights,
        seconds=seconds,
        notes=tuple(notes),
        explanations=tuple(work.explained),
        errors=tuple(work.errors),
    )


def _pseudonyms(run: Path) -> Pseudonyms:
    """Take the salt of the run's own cache, so that a patient has the name that the run knows."""
    salt = salt_path(Path(read_heads(run).config.embeddings.cache))
    return Pseudonyms(salt) if salt.is_file() else Pseudonyms()


class _Work:
    """The pictures of a dataset, image by image.

    Attributes
    ----------
    explained : list of Explained
    errors : list of (path, reason)
    sheet : list of (path, Shown)
        Images from all over the dataset, for the contact sheet.
    """

    def __init__(
        self,
        dataset: Dataset,
        explainer: Explainer,
        number: int | None,
        cases: Cases,
        folder: Path,
        *,
        with_sheet: bool,
    ) -> None:
        self.dataset, self.explainer, self.number = dataset, explainer, number
        self.cases, self.folder = cases, folder
        self.explained: list[Explained] = []
        self.errors: list[tuple[str, str]] = []
        self.sheet: list[tuple[str, Shown]] = []
        n_shown = min(len(dataset), SHEET_COLUMNS * SHEET_ROWS) if with_sheet else 0
        self._in_sheet = set(np.linspace(0, len(dataset) - 1, n_shown).astype(int).tolist())

    def run(self, on_progress: Callable[[Progress], None]) -> None:
        """Explain all images that can be read."""
        started = time.monotonic()
        done = 0
        for some in self._batches():
            images = torch.stack([image for _, _, _, image in some])
            for (index, key, pixels, _), found in zip(some, self.explainer.explain(images, self.number), strict=True):
                self._add(index, key, pixels, found)
            done = len(self.explained) + len(self.errors)
            on_progress(Progress(done, len(self.dataset), done / (time.monotonic() - started)))
        if not self.explained:
            path, reason = self.errors[0]
            raise HoarfrostError(
                f"{self.dataset.source}: none of the {len(self.dataset)} images could be read. The first: {path}: {reason}."
            )

    def _batches(self) -> Iterator[list[tuple[int, bytes, Pixels, torch.Tensor]]]:
        """Decode a few images at a time: place, key, pixels for people, and what the backbone takes."""
        batch = []
        for index, read in self.dataset.images.contents(range(len(self.dataset))):
            try:
                content = read()
                pixels, image = self.explainer.prepared(content)
            except (ImageDecodeError, OSError, MemoryError) as error:
                self.errors.append((self.dataset.paths[index], str(error) or "not enough memory to read the file"))
                continue
            batch.append((index, image_key(content), fitted(pixels, SIDE), image))
            if len(batch) == AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch

    def _add(self, index: int, key: bytes, pixels: Pixels, found: ExplainedImage) -> None:
        path, patients = self.dataset.paths[index], self.dataset.patients
        nearest = self.cases.nearest(found, key, "" if patients is None else patients[index])
        names = self.explainer.predictor.names
        shown = Shown(
            pixels, found.cells, self.explainer.backbone.encoder, _title(found, names), found.subject, found.measure,
            self.cases.pictures(nearest),
        )  # fmt: skip
        file = f"{index + 1:0{len(str(len(self.dataset)))}d}-{_slug(path)}.png"
        (self.folder / file).write_bytes(encode_png(card(shown)))
        if index in self._in_sheet:
            self.sheet.append((path, shown))
        self.explained.append(
            Explained(
                path, file, found.called,
                dict(zip(names, found.probabilities.tolist(), strict=True)),
                dict(zip(names, found.calibrated.tolist(), strict=True)),
                found.subject, found.evidence, tuple(map(tuple, found.cells.tolist())), nearest,
            )
        )  # fmt: skip


def _title(found: ExplainedImage, names: Sequence[str]) -> str:
    p = found.calibrated[names.index(found.subject)]
    return f"{found.subject}: probability {p:.3f}; called {found.called}"


def _slug(path: str) -> str:
    """Give a path as a file name that any file system takes, without a picture's own ending."""
    plain = path if FRAME_MARK in path else os.path.splitext(path)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[-80:] or "image"


# -- the folder ---------------------------------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    """Refuse a place where something is already, before anything is computed."""
    try:
        is_taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except OSError as error:
        raise HoarfrostError(f"--output {output}: {error.strerror}. Name another folder.") from error
    if is_taken:
        raise HoarfrostError(
            f"--output {output} exists and is no empty folder; nothing was written. Name a new folder, or remove it."
        )


@contextmanager
def _written_whole(output: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the output's place when it is complete."""
    place = output.resolve()
    staging = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed process of the same number
        staging.mkdir(parents=True)
        yield staging
        if place.exists():
            place.rmdir()  # empty, as was checked
        staging.rename(place)
    except OSError as error:
        raise RunError(
            f"--output {output}: cannot be written: {error}. Free the disk, or name another folder."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
