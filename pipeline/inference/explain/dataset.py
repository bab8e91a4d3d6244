"""Explain images from any place: write a folder of pictures, and a JSON file with the numbers behind them."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hoarfrost.features.datasets import Dataset, read_unlabelled
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.decoding.formats import FRAME_MARK
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.decoding.looks import Seen
from hoarfrost.features.decoding.pictures import check_sheet, fitted, write_sheet
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, RunError
from hoarfrost.features.extraction.plan import Progress
from hoarfrost.features.files.whole import whole_folder
from hoarfrost.features.fingerprint import image_key
from hoarfrost.inference.explain.cases import Cases, Example
from hoarfrost.inference.explain.drawing import SHEET_COLUMNS, SHEET_ROWS, SIDE, Pixels, Shown, card, sheet_of
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer, open_explainer
from hoarfrost.inference.predict import run_head
from hoarfrost.runs import read_heads

DOCUMENT = "explanations.json"
N_EXAMPLES = 5
AT_ONCE = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Explained:
    """What was found for one image.

    `label` is None where it is not known. `map` sums to `evidence`, for the class `subject`; `file` is the picture.
    """

    path: str
    file: str
    label: str | None
    called: str
    probabilities: dict[str, float]
    calibrated: dict[str, float]
    subject: str
    evidence: float
    map: tuple[tuple[float, ...], ...]
    nearest: tuple[Example, ...]


@dataclass(frozen=True)
class ExplainSummary:
    """What was explained, as `explain --json` prints it. `notes` state what is missing."""

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
    """Write a picture for each image that shows where the evidence for a class lies.

    Parameters
    ----------
    data : Path or str
        See `hoarfrost.features.datasets.read_unlabelled`.
    output : Path
        A folder, new or empty: `NUMBER-NAME.png` for each image, and `explanations.json`.
    run : Path
        The run folder.
    head : str, optional
        One of the run's heads; by default the selected one.
    class_name : str, optional
        The class to map the evidence for; for the default see `Explainer.explain`.
    contact_sheet : Path, optional
        A PNG of up to 48 images, spread over the dataset.
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
    heads = read_heads(run)
    explainer = open_explainer(run_head(heads, head), weights=weights, device=device, max_pixels=max_pixels)
    number = None if class_name is None else explainer.class_number(class_name)
    notes = [explainer.note] if explainer.note else []
    with ExitStack() as stack:
        cases = Cases.opened(run, explainer, n_examples, notes, stack)
        # With the salt of the run's own cache, a patient has the pseudonym that the run knows.
        salt = salt_path(Path(heads.config.embeddings.cache))
        dataset = read_unlabelled(data, Pseudonyms(salt) if salt.is_file() else Pseudonyms())
        folder = stack.enter_context(_staged_folder(output))
        writer = _ExplanationWriter(dataset, explainer, number, cases, folder, with_sheet=contact_sheet is not None)
        writer.run(on_progress)
        summary = writer.summary(output, contact_sheet, tuple(notes), time.monotonic() - started)
        document = json.dumps(asdict(summary), indent=1, allow_nan=False)
        (folder / DOCUMENT).write_text(document + "\n", encoding="utf-8")
        if contact_sheet is not None:
            write_sheet(contact_sheet, sheet_of(writer.sheet))
    for note in notes:
        logger.warning("%s", note)
    return summary


class _ExplanationWriter:
    """Writes the pictures of a dataset; `sheet` are images from all over it, for the contact sheet."""

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
        self.sheet: list[Shown] = []
        n_shown = min(len(dataset), SHEET_COLUMNS * SHEET_ROWS) if with_sheet else 0
        self._in_sheet = set(np.linspace(0, len(dataset) - 1, n_shown).astype(int).tolist())

    def run(self, on_progress: Callable[[Progress], None]) -> None:
        """Explain all images that can be read."""
        started = time.monotonic()
        for batch in self._batches():
            images = [image for *_, image in batch]
            for (index, key, pixels, _), found in zip(batch, self.explainer.explain(images, self.number), strict=True):
                self._add(index, key, pixels, found)
            done = len(self.explained) + len(self.errors)
            on_progress(Progress(done, len(self.dataset), done / (time.monotonic() - started)))
        if not self.explained:
            path, reason = self.errors[0]
            raise HoarfrostError(
                f"{self.dataset.source}: none of the {len(self.dataset)} images could be read. The first: {path}: {reason}."
            )

    def _batches(self) -> Iterator[list[tuple[int, bytes, Pixels, Seen]]]:
        """Decode a few images at a time: place, key, pixels for people, and what the encoder sees."""
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
        path, patients, label = self.dataset.paths[index], self.dataset.patients, self.cases.label(key)
        nearest = self.cases.nearest(found, key, "" if patients is None else patients[index])
        probabilities, calibrated = (
            dict(zip(self.explainer.predictor.names, p.tolist(), strict=True))
            for p in (found.probabilities, found.calibrated)
        )
        lines = [path, *([] if label is None else [f"true label: {label or '(none)'}"]), _verdict(found, calibrated)]
        shown = Shown(
            pixels, found.cells, self.explainer.backbone.encoder, tuple(lines), found.subject, self.explainer.measure,
            self.cases.captioned(nearest),
        )  # fmt: skip
        file = f"{index + 1:0{len(str(len(self.dataset)))}d}-{_file_name(path)}.png"
        (self.folder / file).write_bytes(encode_png(card(shown)))
        if index in self._in_sheet:
            self.sheet.append(shown)
        self.explained.append(
            Explained(
                path, file, label, found.called, probabilities, calibrated, found.subject, found.evidence,
                tuple(map(tuple, found.cells.tolist())), nearest,
            )
        )  # fmt: skip

    def summary(
        self, output: Path, contact_sheet: Path | None, notes: tuple[str, ...], seconds: float
    ) -> ExplainSummary:
        """Return what was explained, and where it was written."""
        head = self.explainer.predictor.head
        return ExplainSummary(
            images=len(self.dataset),
            explained=len(self.explained),
            failed=len(self.errors),
            head=head.name,
            classes=head.names,
            output=str(output),
            contact_sheet=None if contact_sheet is None else str(contact_sheet),
            fingerprint=head.header.fingerprint.digest,
            weights=head.header.weights,
            seconds=seconds,
            notes=notes,
            explanations=tuple(self.explained),
            errors=tuple(self.errors),
        )


def _verdict(found: ExplainedImage, calibrated: dict[str, float]) -> str:
    """Return the predicted class, and the probability of the class that the map is of."""
    of_subject = "" if found.subject == found.called else f" of {found.subject}"
    return f"predicted: {found.called}, probability{of_subject} {calibrated[found.subject]:.3f}"


def _file_name(path: str) -> str:
    """Return a path as a file name that any file system takes, without the image's own ending."""
    plain = path if FRAME_MARK in path else os.path.splitext(path)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-")[-80:] or "image"


# -- the folder ---------------------------------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    """Refuse a place that is taken, before anything is computed."""
    try:
        is_taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    except OSError as error:
        raise HoarfrostError(f"--output {output}: {error.strerror}. Name another folder.") from error
    if is_taken:
        raise HoarfrostError(
            f"--output {output} exists and is not an empty folder. Nothing was written. Name a new folder, or remove it."
        )


@contextmanager
def _staged_folder(output: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes the output when it is complete."""
    try:
        with whole_folder(output) as staging:
            yield staging
            _check_output(output)  # again: what somebody has put there meanwhile would be lost
    except OSError as error:
        raise RunError(
            f"--output {output} cannot be written: {error}. Free space on the disk, or name another folder."
        ) from error
