"""A paragraph of methods, ready to paste into a paper: what this run did, from its own values."""

from collections.abc import Iterator
from pathlib import PurePath

from hoarfrost.evaluation.bootstrap import N_DRAWS
from hoarfrost.evaluation.estimates import WILSON
from hoarfrost.evaluation.intervals import BOOTSTRAP, DELONG, NEWCOMBE
from hoarfrost.evaluation.operating import YOUDEN
from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.explore import point_methods
from hoarfrost.report.provenance import plain
from hoarfrost.report.views import looks_of
from hoarfrost.report.words import decimal, listed, several
from hoarfrost.runs import EmbeddingFacts, FixedPoint, Run, SplitSize

MOST_HEADS = 6
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
RASTER = JPEG | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
LITERATURE = {
    "Breiman 1996": "Machine Learning 24(1), 49-64",
    "DeLong et al. 1988": "Biometrics 44(3), 837-845",
    "Efron 1987": "Journal of the American Statistical Association 82(397), 171-185",
    "Guo et al. 2017": "On Calibration of Modern Neural Networks, ICML",
    "Holm 1979": "Scandinavian Journal of Statistics 6(2), 65-70",
    "Nadeau and Bengio 2003": "Machine Learning 52(3), 239-281",
    "Newcombe 2006": "Statistics in Medicine 25(4), 559-573",
    "Loshchilov and Hutter 2019": "Decoupled Weight Decay Regularization, ICLR",
    "Nixon et al. 2019": "Measuring Calibration in Deep Learning, CVPR workshops",
    "Obuchowski 1997": "Biometrics 53(2), 567-578",
    "Riley and Collins 2023": "Biometrical Journal 65(8), 2200302",
    "Vickers and Elkin 2006": "Medical Decision Making 26(6), 565-574",
    "Wilson 1927": "Journal of the American Statistical Association 22(158), 209-212",
    "Youden 1950": "Cancer 3(1), 32-35",
}
"""Where a method was published, by the words that cite it."""
_BY_METHOD = {
    BOOTSTRAP: f"a {BOOTSTRAP} (bias-corrected and accelerated, Efron 1987; {N_DRAWS:,} draws)",
    NEWCOMBE: "Newcombe's method (Newcombe 2006)",
    WILSON: "Wilson's score method (Wilson 1927)",
}
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
    used = [*_data(run), *_features(run), *_heads(run), *_evaluation(run, evaluation), *_software(run)]
    return " ".join([*used, *_references(" ".join(used))])


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
    looks = looks_of(facts)
    yield (
        f"Each image was embedded {looks or 'once'} by a frozen {encoder.title} up to its {encoder.output} "
        f"({encoder.dim_of(facts.layers)} values) with {_weights(facts)} (SHA-256 {facts.weights_sha256[:16]}), in "
        f"{facts.precision.split(':')[0]}{f' ({facts.drift})' if facts.drift else ''}."
    )
    if len(facts.views) > 1:
        yield (
            "Heads that learn in steps saw one view of each image in a step, and their probabilities were averaged over "
            "views; fitted heads took the mean embedding of an image's views. Each size and geometry has members of its own. "
            f"The distance from the training images is that in the view {facts.views[0]}."
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
    config, names = run.config, [head.name for head in run.heads if not head.shares]
    loss = "binary cross-entropy of each label" if config.dataset.is_multilabel else "cross-entropy"
    smoothing = f" with label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
    balanced = ", classes weighted equally" if config.class_weight == "balanced" else ""
    what = f"{several(len(names), 'head')} ({listed(names, MOST_HEADS)}) {'were' if len(names) > 1 else 'was'}"
    yield f"{what} trained on embeddings that were standardised by their training images, with {loss}{balanced}."
    stepwise = [head for head in run.heads if head.epochs]
    if stepwise:
        trained = listed([head.name for head in stepwise], MOST_HEADS)
        batches = "" if config.batch_size is None else f", batches of {config.batch_size}"
        stop = (
            f", stopped after {several(config.patience, 'epoch')} without a lower validation loss (the best was kept)"
            if config.patience
            else ""
        )
        yield (
            f"AdamW (Loshchilov and Hutter 2019; {config.schedule} learning rate{batches}{smoothing}) trained {trained} for "
            f"{'at most ' if config.patience else ''}{several(max(head.epochs for head in stepwise), 'epoch')}{stop}."
        )
    fitted = [head.trained_as or head.name for head in run.heads if not head.epochs and not head.shares]
    if fitted:
        yield f"Fitted to convergence with an L2 penalty, chosen by {config.validation} loss: {listed(fitted, MOST_HEADS)}."
    if config.n_cross_fit is not None:
        yield (
            f"Training images were divided into {config.n_cross_fit} folds; each was predicted by the heads that did not "
            "learn from its fold (cross-fitting), and other images by the mean of all folds' heads."
        )
    yield from _selection(run)


def _selection(run: Run) -> Iterator[str]:
    config, chosen = run.config, run.head(run.selected)
    if chosen.shares:
        parts = listed([f"{name} ({share:.2f})" for name, share in chosen.shares.items()], MOST_HEADS)
        yield (
            f"The final model is the mean of all kinds of head, with the weights that minimise the {config.validation} loss "
            f"(stacking, Breiman 1996): {parts}; {several(chosen.n_members, 'trained head')} in all."
        )
        return
    values = {"learning rate": chosen.learning_rate, "weight decay": chosen.weight_decay, "dropout": chosen.dropout}
    known = "".join(f", {name} {value:g}" for name, value in values.items() if value is not None)
    members = f", the mean of {chosen.n_members} trained heads" if chosen.n_members > 1 else ""
    yield (
        f"The head was selected {config.selection}: {chosen.trained_as or chosen.name} ("
        f"{several(chosen.n_parameters, 'parameter')}{known}{members})."
    )


def _evaluation(run: Run, evaluation: Evaluation) -> Iterator[str]:
    how, area = run.config.per_patient, evaluation.area(run.head(run.selected))
    joined = "" if how is None else f"; the probability of a patient is the {how} over the images"
    yield f"Performance was measured on the {evaluation.samples()}{evaluation.of_patients()}{joined}."
    if area.is_optimistic:
        yield "The ROC AUC has no interval, because these images also selected the model; it is optimistic."
    elif area.method:
        yield f"The 95% interval of the ROC AUC is by {_by(area.method)}."
    if run.comparisons:
        tests = {found.difference.method for found in run.comparisons}
        clustered = "" if tests == {DELONG} else ", clustered by patient: Obuchowski 1997"
        yield (
            f"Heads were compared with the selected one by paired tests of ROC AUCs (DeLong et al. 1988{clustered}), "
            "p values corrected by Holm's method (Holm 1979)."
        )
    if run.assessment is not None:
        yield from _assessed(run, run.assessment.classes[0].points[0], area.method)
    if run.cross_validation is not None:
        yield (
            f"The whole procedure, with selection, was also cross-validated in {run.cross_validation.n_folds} folds, and the "
            "predictions of the held-out parts were pooled."
        )
    if run.repeats is not None:
        yield (
            f"It was also repeated on {run.repeats.n_splits} random splits; the interval of the mean ROC AUC allows for "
            "training sets that overlap (Nadeau and Bengio 2003). How much single predictions vary was shown by instability "
            "plots (Riley and Collins 2023)."
        )


def _by(method: str) -> str:
    """Return a method of intervals with its reference and draws; DeLong's may come with the reason for its use."""
    if method.startswith(DELONG):
        return f"DeLong's method (DeLong et al. 1988){method.removeprefix(DELONG)}"
    return _BY_METHOD.get(method, method)


def _assessed(run: Run, first: FixedPoint, of_area: str) -> Iterator[str]:
    assert run.assessment is not None
    methods = point_methods(run.assessment)
    by = "the same method" if methods == (of_area,) else " or ".join(map(_by, methods))
    if len(run.assessment.classes) == 1 and first.result is not None:
        yield (
            f"The threshold ({decimal(first.point.threshold)}) was chosen on {run.config.validated_on} by {first.point.name}"
            f"{' (Youden 1950)' if first.point.name == YOUDEN else ''}. The 95% intervals of sensitivity, specificity and "
            f"predictive values are by {by}."
        )
    else:
        yield f"Thresholds were chosen on {run.config.validated_on} for each class against the rest."
    yield (
        "Calibration was assessed in ten bins of equal mass (Nixon et al. 2019), before and after scaling by a temperature "
        f"fitted on {run.config.validated_on} (Guo et al. 2017); net benefit by decision curves (Vickers and Elkin 2006) of "
        "the rescaled probabilities."
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


def _references(text: str) -> Iterator[str]:
    found = [f"{cited}, {place}" for cited, place in LITERATURE.items() if cited in text]
    if found:
        yield f"References: {'; '.join(found)}."
