"""Export a head of a run with its backbone as one file, tested before it is written, with its model card beside it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.decoding.views import parse_views
from hoarfrost.features.errors import CacheError, DatasetError, HoarfrostError, ImageDecodeError
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.export import formats
from hoarfrost.inference.export.card import TITLE, model_card
from hoarfrost.inference.export.metadata import metadata_of
from hoarfrost.inference.export.model import Classifier
from hoarfrost.inference.outputs import checked_output, written_output
from hoarfrost.inference.predict import run_head
from hoarfrost.inference.sources import opened_source
from hoarfrost.report.words import several
from hoarfrost.runs import Run, read_heads, read_looked_at

CARD = "model_card.md"
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
LARGEST_DIFFERENCE = 1e-4  # of a probability, between the file and the head it was exported from
# The same where a view is made of the largest view's pixels, and not of the image's own.
LARGEST_DIFFERENCE_OF_VIEWS = 0.1
OF_ANOTHER_RUN = "The head file may be of another run: train again, then export."
MADE_OF_THE_LARGEST = (
    "It makes its views of an image that was stretched to the size of the largest one. Train with views of one size and "
    "without crop and tiles, then export."
)
BLOTCH = 28  # pixels of a trial image
N_COMPARED = 32  # of the run's own images

Pixels = npt.NDArray[np.uint8]
Runner = Callable[[bytes, Pixels], list[npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class ExportSummary:
    """What was exported, as `export --json` prints it.

    `largest_difference` is that between a probability of the file and of the head, in batches of 1 and 7;
    `difference_from_run` is that from the run's predictions.csv on `n_compared` of its own images, None if these are
    missing. `opset` is None if the format has none.
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
    """Export a head of a run as one model, from pixels to probabilities.

    Parameters
    ----------
    run : Path
        The run folder.
    output : Path
        The file; an earlier export there is replaced. `model_card.md` is written beside it.
    file_format : "onnx" or "torch"
        ONNX, or a torch.export program.
    head : str, optional
        One of the run's heads; by default the selected one.
    weights : str, optional
        Where the backbone's weights are now, if they were moved.

    Raises
    ------
    HoarfrostError
        One of its children: run, head, weights, fingerprint, output; if a library is missing; or if the file does not
        return the head's probabilities.
    """
    started = time.monotonic()
    writer, runner = formats.torch_bytes, formats.run_torch
    if file_format == "onnx":
        formats.require_onnx()
        writer, runner = formats.onnx_bytes, formats.run_onnx
    _check_output(output, file_format, run)
    saved = run_head(read_heads(run), head)
    facts = read_looked_at(run, "export")  # the model card has the scores
    recipe, window = recipe_like(saved.header, weights)
    recipe.encoder.require_one_file()
    classifier = Classifier(recipe.checked_weights(), saved)
    content = writer(formats.exported_program(classifier), metadata_of(facts, saved))
    largest = _largest_difference(classifier, content, runner)
    decoding = Decoding(window=window, size=classifier.size)
    differs, n_compared, notes = _difference_from_run(facts, saved, decoding, content, runner)
    made = _sentences(file_format, largest, differs, n_compared, saved)
    _write(output, content, model_card(facts, saved, output.name, made))
    return ExportSummary(
        output=str(output),
        model_card=str(output.with_name(CARD)),
        format=file_format,
        opset=formats.OPSET if file_format == "onnx" else None,
        bytes=len(content),
        head=saved.name,
        classes=saved.names,
        fingerprint=saved.header.fingerprint.digest,
        weights=saved.header.weights,
        largest_difference=largest,
        difference_from_run=differs,
        n_compared=n_compared,
        seconds=time.monotonic() - started,
        notes=(*notes, *made[1:]),
    )


# -- tested before it is written ----------------------------------------------------------------------------------------


def _largest_difference(classifier: Classifier, content: bytes, runner: Runner) -> float:
    """Return the largest difference between the file and the module, in batches of several sizes."""
    images = _trial_images(max(formats.BATCHES), classifier.size)
    with torch.no_grad():
        wanted = [output.numpy() for output in classifier(torch.from_numpy(images))]
    largest = max(
        float(np.abs(found - whole[:n]).max())
        for n in formats.BATCHES
        for found, whole in zip(runner(content, images[:n]), wanted, strict=True)
    )
    if not largest <= LARGEST_DIFFERENCE:
        raise HoarfrostError(
            f"The exported model's probabilities differ by {largest:.2g} from those of the head, more than "
            f"{LARGEST_DIFFERENCE:g}. Nothing was written. Use the other --format, or other versions of torch, onnx and "
            "onnxruntime."
        )
    return largest


def _trial_images(n: int, size: int) -> Pixels:
    """Return smooth grey blotches with a little noise: similar enough to images that not all probabilities are 0 or 1."""
    rng = np.random.default_rng(0)
    n_blotches, block = -(-size // BLOTCH), (1, 1, BLOTCH, BLOTCH)
    coarse = np.kron(rng.integers(0, 200, (n, 1, n_blotches, n_blotches)), np.ones(block, int))[:, :, :size, :size]
    return np.repeat(coarse + rng.integers(0, 56, coarse.shape), 3, axis=1).astype(np.uint8)


def _difference_from_run(
    run: Run, head: SavedHead, decoding: Decoding, content: bytes, runner: Runner
) -> tuple[float | None, int, list[str]]:
    """Compare the file with the run's own predictions, on images whose content is still what was embedded.

    Return the largest difference of a probability (None if no image was compared), the number of images, and notes on why
    none was compared.
    """
    predictions = run.predictions
    split = "val" if run.head(head.name).test is None else "test"
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
        return None, 0, [f"Not compared with the run's own predictions. {error}"]
    if not images:
        return None, 0, ["Not compared with the run's own predictions: its images are missing or have changed."]
    uncalibrated = np.concatenate([runner(content, np.stack(images[i : i + 8]))[1] for i in range(0, len(images), 8)])
    difference = float(np.abs(uncalibrated - predictions.probabilities[head.name][found]).max())
    views = parse_views(",".join(head.views), head.header.fingerprint.encoder)
    are_own = all(view.size == decoding.size and view.crop == 1 and view.tiles == 1 for view in views)
    limit = LARGEST_DIFFERENCE if are_own else LARGEST_DIFFERENCE_OF_VIEWS
    if head.header.fingerprint.precision == "float32" and not difference <= limit:
        raise HoarfrostError(
            f"The exported model differs by {difference:.2g} from the run's own predictions, more than "
            f"{limit:g}. Nothing was written. {OF_ANOTHER_RUN if are_own else MADE_OF_THE_LARGEST}"
        )
    return difference, len(images), []


def _sentences(file_format: str, largest: float, differs: float | None, n_compared: int, head: SavedHead) -> list[str]:
    """Return how the model was exported: the format and the test; then what its user must know."""
    kind = (
        f"ONNX, opset {formats.OPSET}"
        if file_format == "onnx"
        else f"A torch.export program of torch {torch.__version__}"
    )
    batches = " and ".join(map(str, formats.BATCHES))
    tested = f"{kind}. In batches of {batches}, its probabilities differ by at most {largest:.1e} from torch's"
    if differs is not None:
        tested += f", and by at most {differs:.1e} from the run's own on {several(n_compared, 'image')} of the run"
    precision = head.header.fingerprint.precision.partition(":")[0]
    if precision == "float32":
        return [f"{tested}."]
    return [f"{tested}.", f"The model computes in float32. The head was trained on embeddings in {precision}."]


# -- files --------------------------------------------------------------------------------------------------------------


def _check_output(output: Path, file_format: str, run: Path) -> None:
    """Refuse a place for the file where something else would be lost, before anything is computed."""
    suffix, card = SUFFIXES[file_format], output.with_name(CARD)
    if output.suffix.lower() != suffix:
        raise HoarfrostError(f"--output {output}: --format {file_format} writes a {suffix} file. Use this ending.")
    with checked_output(output):
        if output.is_dir():
            raise HoarfrostError(f"--output {output} is a folder. Name a file in it, such as model{suffix}.")
        if output.resolve().is_relative_to(run.resolve()):
            raise HoarfrostError(
                f"--output {output} is in the run folder, which the next run replaces. Name another place."
            )
        if not card.exists():
            return
        if not card.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
            raise HoarfrostError(
                f"{card} is not a model card of hoarfrost, and would be overwritten. Name another folder."
            )
        files = [path.name for path in sorted(output.parent.glob("*")) if path.suffix in SUFFIXES.values()]
        others = [name for name in files if name != output.name]
        if others:
            raise HoarfrostError(
                f"{card} is the card of another model there ({', '.join(others)}), and would be overwritten. Name another "
                "folder."
            )


def _write(output: Path, content: bytes, card: str) -> None:
    for path, part in ((output, content), (output.with_name(CARD), card.encode("utf-8", "replace"))):
        with written_output(path) as file:
            file.write(part)
