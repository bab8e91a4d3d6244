"""Export a head of a run with its backbone as one file, tried before it is left behind, and its model card beside it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.images import Decoding, load_image
from hoarfrost.features.errors import CacheError, DatasetError, HoarfrostError, ImageDecodeError, RunError
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.features.files.whole import check_writable, whole_file
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.export import formats
from hoarfrost.inference.export.card import TITLE, model_card
from hoarfrost.inference.export.metadata import metadata_of
from hoarfrost.inference.export.model import Classifier
from hoarfrost.inference.predict import run_head
from hoarfrost.inference.sources import opened_source
from hoarfrost.runs import Run, read_heads, read_run

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CARD = "model_card.md"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
LARGEST_DIFFERENCE = 1e-4  # of a probability, between what was exported and what it was exported from
BLOTCH = 28  # pixels of a trial image
N_COMPARED = 32  # of the run's own images

Pixels = npt.NDArray[np.uint8]
Writer = Callable[["ExportedProgram", Mapping[str, str]], bytes]
Runner = Callable[[bytes, Pixels], list[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class ExportSummary:
    """What was exported; `export --json` prints it.

    `largest_difference` is that of a probability from what the model was exported from, in batches of 1 and 7;
    `difference_from_run` is that from the run's predictions.csv on `n_compared` of its own images, None where they are
    gone. `opset` is None where the format has none.
    """

    output: str
    model_card: str
    format: str
    opset: int | None
    bytes: int
    head: str
    classes: tuple[str, ...]
    fingerprint: str
    weights: str
    largest_difference: float
    difference_from_run: float | None
    n_compared: int
    seconds: float
    notes: tuple[str, ...]


def export_head(
    run: Path, output: Path, *, file_format: str, head: str | None = None, weights: str | None = None
) -> ExportSummary:
    """Export a head of a run as one model from pixels to probabilities.

    Parameters
    ----------
    run : Path
        The run folder.
    output : Path
        The file; an earlier export there is replaced. `model_card.md` goes beside it.
    file_format : "onnx" or "torch"
        ONNX, or torch.export's program.
    head : str, optional
        Which of the run's heads; by default the selected one.
    weights : str, optional
        Where the backbone's weights are now, if not where they were.

    Raises
    ------
    HoarfrostError
        One of its children: run, head, weights, fingerprint, output; if a library is missing; or if the file does not
        give what it was exported from.
    """
    started = time.monotonic()
    writer, runner = _format(file_format)
    _check_output(output, file_format, run)
    saved, facts = run_head(read_heads(run), head), read_run(run)
    recipe, window = recipe_like(saved.header, weights)
    classifier = Classifier(recipe.checked_weights(), saved)
    content = writer(formats.exported_program(classifier), metadata_of(facts, saved))
    largest = _largest_difference(classifier, content, runner)
    decoding = Decoding(window=window, size=recipe.encoder.size)
    differs, n_compared, notes = _difference_from_run(facts, saved, decoding, content, runner)
    made = _sentences(file_format, largest, differs, n_compared, saved)
    _write(output, content, model_card(facts, saved, output.name, made))
    return ExportSummary(
        output=str(output),
        model_card=str(output.with_name(CARD)),
        format=file_format,
        opset=formats.OPSET if file_format == "onnx" else None,
        bytes=len(content),
        head=saved.spec.name,
        classes=saved.names,
        fingerprint=saved.header.fingerprint.digest,
        weights=saved.header.weights,
        largest_difference=largest,
        difference_from_run=differs,
        n_compared=n_compared,
        seconds=time.monotonic() - started,
        notes=(*notes, *made[1:]),
    )


def _format(file_format: str) -> tuple[Writer, Runner]:
    if file_format == "onnx":
        formats.require_onnx()
        return formats.onnx_bytes, formats.run_onnx
    return formats.torch_bytes, formats.run_torch


# -- tried before it is left behind -------------------------------------------------------------------------------------


def _largest_difference(classifier: Classifier, content: bytes, runner: Runner) -> float:
    """Compare the file with what it was exported from, in batches of several sizes."""
    images = _trial_images(max(formats.BATCHES), classifier.encoder.size)
    with torch.no_grad():
        wanted = [output.numpy() for output in classifier(torch.from_numpy(images))]
    differences = [
        float(np.abs(found - whole[:n]).max())
        for n in formats.BATCHES
        for found, whole in zip(runner(content, images[:n]), wanted, strict=True)
    ]
    largest = max(differences)
    if not largest <= LARGEST_DIFFERENCE:
        raise HoarfrostError(
            f"The exported model differs by {largest:.2g} from what it was exported from, more than {LARGEST_DIFFERENCE:g}; "
            "nothing was written. Export in the other --format, or with other versions of torch, onnx and onnxruntime."
        )
    return largest


def _trial_images(n: int, size: int) -> Pixels:
    """Draw smooth grey blotches with a little noise: not so far from images that all probabilities were 0 or 1."""
    rng = np.random.default_rng(0)
    n_blotches, block = -(-size // BLOTCH), (1, 1, BLOTCH, BLOTCH)
    coarse = np.kron(rng.integers(0, 200, (n, 1, n_blotches, n_blotches)), np.ones(block, int))[:, :, :size, :size]
    return np.repeat(coarse + rng.integers(0, 56, coarse.shape), 3, axis=1).astype(np.uint8)


def _difference_from_run(
    run: Run, head: SavedHead, decoding: Decoding, content: bytes, runner: Runner
) -> tuple[float | None, int, list[str]]:
    """Compare the file with the run's own predictions, on images that still are what was embedded.

    Returns
    -------
    difference : float or None
        The largest of a probability, None where no image is there any more.
    n : int
        Images compared.
    notes : list of str
        Why there are none.
    """
    predictions = run.predictions
    split = "val" if run.head(head.spec.name).test is None else "test"
    rows = [i for i, each in enumerate(predictions.splits) if each == split]
    spread = np.linspace(0, len(rows) - 1, min(len(rows), N_COMPARED)).astype(int).tolist()
    row_of = {predictions.paths[rows[place]]: rows[place] for place in spread}
    images, found, reasons = [], [], dict[str, str]()
    try:
        with opened_source(run) as source:
            for path, each in source.contents(list(row_of), reasons):
                try:
                    images.append(load_image(each, decoding).expand(3, -1, -1).numpy())
                    found.append(row_of[path])
                except ImageDecodeError:
                    continue
    except (CacheError, DatasetError) as error:
        return None, 0, [f"not compared with the run's own predictions: {error}"]
    if not images:
        return None, 0, ["not compared with the run's own predictions: their images are not what they were, or gone"]
    uncalibrated = np.concatenate([runner(content, np.stack(images[i : i + 8]))[1] for i in range(0, len(images), 8)])
    difference = float(np.abs(uncalibrated - predictions.probabilities[head.spec.name][found]).max())
    if head.header.fingerprint.precision == "float32" and not difference <= LARGEST_DIFFERENCE:
        raise HoarfrostError(
            f"The exported model differs by {difference:.2g} from the run's own predictions, more than "
            f"{LARGEST_DIFFERENCE:g}; nothing was written. Its file may be another run's: train again, and export that."
        )
    return difference, len(images), []


def _sentences(file_format: str, largest: float, differs: float | None, n_compared: int, head: SavedHead) -> list[str]:
    """Say how it was exported: the format and what was tried; then what its user must know."""
    kind = (
        f"ONNX, opset {formats.OPSET}"
        if file_format == "onnx"
        else f"torch.export's program, by torch {torch.__version__}"
    )
    batches = " and ".join(map(str, formats.BATCHES))
    tried = f"{kind}; in batches of {batches} its probabilities differ by at most {largest:.1e} from torch's"
    if differs is not None:
        tried += f", and by at most {differs:.1e} from the run's own on {n_compared} of its images"
    precision = head.header.fingerprint.precision.partition(":")[0]
    if precision == "float32":
        return [f"{tried}."]
    return [f"{tried}.", f"It computes in float32, though the head was trained on embeddings in {precision}."]


# -- files --------------------------------------------------------------------------------------------------------------


def _check_output(output: Path, file_format: str, run: Path) -> None:
    """Refuse a place for the file where something else would be lost, before anything is computed."""
    suffix = SUFFIXES[file_format]
    if output.suffix.lower() != suffix:
        raise HoarfrostError(f"--output {output}: --format {file_format} makes a {suffix} file. Name it so.")
    try:
        if output.is_dir():
            raise HoarfrostError(f"--output {output} is a folder. Name a file in it, as model{suffix}.")
        if output.resolve().is_relative_to(run.resolve()):
            raise HoarfrostError(
                f"--output {output} is in the run's folder, which the next run replaces. Name another place."
            )
        card = output.with_name(CARD)
        if card.exists() and not card.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
            raise HoarfrostError(
                f"{card} is no model card of hoarfrost, and would be overwritten. Name another folder."
            )
        others = [path.name for path in sorted(output.parent.glob("*")) if path.suffix in SUFFIXES.values()]
        if card.exists() and any(name != output.name for name in others):
            raise HoarfrostError(
                f"{card} is of the model beside it ({', '.join(name for name in others if name != output.name)}), and would "
                "be overwritten. Name another folder."
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        check_writable(output.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise HoarfrostError(f"--output {output}: cannot be written: {error}. Name another file.") from error


def _write(output: Path, content: bytes, card: str) -> None:
    try:
        for path, part in ((output, content), (output.with_name(CARD), card.encode("utf-8", "replace"))):
            with whole_file(path) as file:
                file.write(part)
    except OSError as error:
        raise RunError(
            f"{output}: cannot be written: {error}. Free the disk, or name another file with --output."
        ) from error
