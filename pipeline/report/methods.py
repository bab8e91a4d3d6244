"""A paragraph of methods, ready to paste into a paper: what this run did, from its own values."""

from collections.abc import Iterator
from pathlib import PurePath

from hoarfrost.evaluation.intervals import BOOTSTRAP
from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.explore import point_methods
from hoarfrost.report.provenance import plain
from hoarfrost.report.words import decimal, listed, several
from hoarfrost.runs import EmbeddingFacts, FixedPoint, Run, SplitSize

MOST_HEADS = 6
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
RASTER = JPEG | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
# Steps that change few images of these kinds, and are long to describe: config.json has them.
SPECIAL = {"decode", "deep grey", "transparency", "orientation", "frames"}


def methods_of(run: Run, evaluation: Evaluation) -> str:
    """Write the methods of a run.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation

    Returns
    -------
    str
        One paragraph that names only what the run used.
    """
    return " ".join([*_data(run), *_features(run), *_heads(run), *_evaluation(run, evaluation), *_software(run)])


def _data(run: Run) -> Iterator[str]:
    dataset, sizes = run.config.dataset, {size.split: size for size in run.split_sizes()}
    patients = "" if dataset.n_patients is None else f" of {several(dataset.n_patients, 'patient')}"
    unreadable = f"; {len(dataset.unreadable):,} of them were unreadable and omitted" if dataset.unreadable else ""
    yield f"The dataset {dataset.name} has {several(dataset.n_images, 'image')}{patients}{unreadable}."
    way = rule_named(dataset.split_by).method.format(seed=run.config.seed)
    names = {"train": "for training", "val": "for validation", "test": "for testing"}
    parts = [f"{_size(sizes[name])} {words}" for name, words in names.items() if name in sizes]
    yield f"{way}: {', '.join(parts)}."
    if run.leakage is not None and not run.leakage.not_compared:
        yield (
            "Splits were searched for shared patients, identical files and near-duplicates (cosine of standardised "
            f"embeddings above {run.leakage.threshold:g}): {_leaks(run)}."
        )
    yield from _kept_together(run)


def _kept_together(run: Run) -> Iterator[str]:
    found = run.leakage.together if run.leakage is not None else None
    if run.leakage is not None and found is not None and found.n_groups:
        yield (
            f"Near-identical images (cosine of standardised embeddings above {run.leakage.threshold:g}) were kept together "
            f"in all splits and folds that were drawn: {several(found.n_images, 'image')} in "
            f"{several(found.n_groups, 'group')}."
        )


def _size(size: SplitSize) -> str:
    patients = "" if size.n_patients is None else f" of {several(size.n_patients, 'patient')}"
    return f"{several(size.n_images, 'image')}{patients}"


def _leaks(run: Run) -> str:
    found = run.leakage
    assert found is not None
    kinds = [
        (found.n_patients, "shared patient"),
        (found.n_contents, "identical file"),
        (found.n_near_duplicates, "near-duplicate pair"),
    ]
    return ", ".join(several(n, noun) for n, noun in kinds if n) or "none was found"


def _features(run: Run) -> Iterator[str]:
    facts = run.config.embeddings
    encoder = facts.encoder
    yield (
        f"Each image was embedded once by a frozen {encoder.title} up to its {encoder.output} ({encoder.dim} values) with "
        f"{_weights(facts)} (SHA-256 {facts.weights_sha256[:16]}), in {facts.precision.split(':')[0]}."
    )
    unused = _unused_steps(run)
    steps = [f"{name} {plain(value)}" for name, value in facts.preprocessing.items() if name not in unused]
    special = "; special cases are in config.json" if SPECIAL & unused & facts.preprocessing.keys() else ""
    yield f"Preprocessing: {'; '.join(steps)}{special}."


def _weights(facts: EmbeddingFacts) -> str:
    if facts.weights.startswith("random:"):
        return f"untrained, randomly initialised weights ({facts.weights})"
    if facts.weights == "imagenet" and facts.encoder.published is not None:
        return f"weights pretrained on {facts.encoder.published.title}"
    return f"the weights {facts.weights}"


def _suffixes(run: Run) -> set[str]:
    return {PurePath(path).suffix.lower() for path in run.predictions.paths}


def _has_dicom(run: Run) -> bool:
    """Return whether files may be DICOM, which need no suffix; rows of an npz file are arrays."""
    return bool(_suffixes(run) - RASTER) and not run.config.dataset.source.endswith(".npz")


def _unused_steps(run: Run) -> set[str]:
    dicom = set() if _has_dicom(run) else {"dicom", "dicom codecs", "dicom window"}
    return SPECIAL | dicom | (set() if _suffixes(run) & JPEG else {"jpeg"})


def _heads(run: Run) -> Iterator[str]:
    config, names = run.config, [head.name for head in run.heads]
    loss = "binary cross-entropy of each label" if config.dataset.is_multilabel else "cross-entropy"
    smoothing = f" with label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
    balanced = ", classes weighted equally" if config.class_weight == "balanced" else ""
    what = f"{several(len(names), 'head')} ({listed(names, MOST_HEADS)}) {'were' if len(names) > 1 else 'was'}"
    yield (
        f"{what} trained on embeddings standardised by the training split, with AdamW ({config.schedule} learning rate, "
        f"batches of {config.batch_size}) and {loss}{smoothing}{balanced}, for at most {several(config.epochs, 'epoch')}. "
        f"Training stopped after {several(config.patience, 'epoch')} without a lower validation loss; the best was kept."
    )
    if config.seeds > 1:
        yield f"Each head was trained with {config.seeds} seeds, whose probabilities were averaged."
    chosen = run.head(run.selected)
    yield (
        f"The head with the highest validation ROC AUC was selected: {chosen.name} ("
        f"{several(chosen.n_parameters, 'parameter')}, learning rate {chosen.learning_rate:g}, weight decay "
        f"{chosen.weight_decay:g}, dropout {chosen.dropout:g})."
    )


def _evaluation(run: Run, evaluation: Evaluation) -> Iterator[str]:
    how, method = run.config.per_patient, evaluation.area(run.head(run.selected)).method
    joined = "" if how is None else f"; the probability of a patient is the {how} over the images"
    yield f"Performance was measured on the {evaluation.samples()}{joined}."
    if method:
        yield f"The 95% interval of the ROC AUC is by {method if method == BOOTSTRAP else f'the method of {method}'}."
    if run.comparisons:
        yield "Heads were compared with the selected one by paired tests of ROC AUCs, p values corrected by Holm's method."
    if run.assessment is not None:
        yield from _assessed(run, run.assessment.classes[0].points[0])
    if run.cross_validation is not None:
        yield (
            f"The whole procedure, with selection, was also cross-validated in {run.cross_validation.n_folds} folds, and the "
            "predictions of the held-out parts were pooled."
        )


def _assessed(run: Run, first: FixedPoint) -> Iterator[str]:
    assert run.assessment is not None
    if len(run.assessment.classes) == 1 and first.result is not None:
        yield (
            f"The threshold ({decimal(first.point.threshold)}) was chosen on validation by {first.point.name}. The 95% "
            "intervals of sensitivity, specificity and predictive values are by: "
            f"{', '.join(point_methods(run.assessment))}."
        )
    else:
        yield "Thresholds were chosen on validation for each class against the rest."
    yield (
        "Calibration was assessed in ten bins of equal mass, before and after scaling by a temperature fitted on validation; "
        "net benefit by decision curves of the rescaled probabilities."
    )
    if run.config.prevalence is not None:
        yield f"Predictive values and net benefit are also given for a prevalence of {run.config.prevalence:g}."
    if run.assessment.subgroups:
        names = ", ".join(dict.fromkeys(one.attribute for one in run.assessment.subgroups))
        yield f"Subgroups were those of {names}."


def _software(run: Run) -> Iterator[str]:
    config = run.config
    used = [f"{name} {version}" for name, version in config.versions.items() if name != "pydicom" or _has_dicom(run)]
    yield f"Software: {', '.join(used)}; device {config.device}; seed {config.seed}."
