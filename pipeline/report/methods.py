"""A paragraph of methods, ready to paste into a paper: what this run did, from its own values."""

from collections.abc import Iterator
from functools import partial
from os.path import splitext

from hoarfrost.evaluation.bootstrap import N_DRAWS
from hoarfrost.evaluation.calibration_curve import N_CURVES
from hoarfrost.evaluation.estimates import WILSON, states_why
from hoarfrost.evaluation.intervals import DELONG, NEWCOMBE
from hoarfrost.evaluation.operating import YOUDEN
from hoarfrost.evaluation.shares import BOOTSTRAP
from hoarfrost.experiment.splits import rule_named
from hoarfrost.external.thresholds import NOT_FITTED
from hoarfrost.features.decoding.views import shows_region
from hoarfrost.features.encoder.registry import PUBLISHED_WORDS
from hoarfrost.features.origins import ELSEWHERE, SUFFIX, is_elsewhere
from hoarfrost.report.covariates import covariates_methods
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.explore import point_methods
from hoarfrost.report.external import external_methods
from hoarfrost.report.planning import needs_text
from hoarfrost.report.provenance import plain
from hoarfrost.report.views import looks_of
from hoarfrost.report.words import listed, of_patients, several, threshold_text
from hoarfrost.runs import Assessment, CacheFacts, FixedPoint, Run, SplitSize, outlook_of
from hoarfrost.runs.records import AS_CALLED, STATED

MOST_HEADS = 6
OF_EMBEDDINGS = {"torch", "torchvision", "pillow", "pydicom", "h5py", "scikit-learn"}
"""Libraries that predictions without images do not need."""
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}
RASTER = JPEG | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"}
LITERATURE = {
    "Austin and Steyerberg 2019": "Statistics in Medicine 38(21), 4051-4065",
    "Breiman 1996": "Machine Learning 24(1), 49-64",
    "Cochran 1954": "Biometrics 10(1), 101-129",
    "DeLong et al. 1988": "Biometrics 44(3), 837-845",
    "Efron 1987": "Journal of the American Statistical Association 82(397), 171-185",
    "Figueroa et al. 2012": "BMC Medical Informatics and Decision Making 12, 8",
    "Guo et al. 2017": "On Calibration of Modern Neural Networks, ICML",
    "Harrell 2015": "Regression Modeling Strategies, section 2.4.5",
    "Holm 1979": "Scandinavian Journal of Statistics 6(2), 65-70",
    "Nadeau and Bengio 2003": "Machine Learning 52(3), 239-281",
    "Newcombe 2006": "Statistics in Medicine 25(4), 559-573",
    "Loshchilov and Hutter 2019": "Decoupled Weight Decay Regularization, ICLR",
    "Nixon et al. 2019": "Measuring Calibration in Deep Learning, CVPR workshops",
    "Obuchowski 1997": "Biometrics 53(2), 567-578",
    "Riley and Collins 2023": "Biometrical Journal 65(8), 2200302",
    "Rao and Scott 1981": "Journal of the American Statistical Association 76(374), 221-230",
    "Riley et al. 2021": "Statistics in Medicine 40(19), 4230-4251",
    "Vickers and Elkin 2006": "Medical Decision Making 26(6), 565-574",
    "Wilson 1927": "Journal of the American Statistical Association 22(158), 209-212",
    "Wolpert 1992": "Neural Networks 5(2), 241-259",
    "Youden 1950": "Cancer 3(1), 32-35",
    "Zou and Donner 2008": "Statistics in Medicine 27(10), 1693-1702",
}
"""Where a method was published, by the words that cite it."""
_BY_METHOD = {
    BOOTSTRAP: f"a {BOOTSTRAP} (bias-corrected and accelerated, Efron 1987; {N_DRAWS:,} draws)",
    NEWCOMBE: "Newcombe's method (Newcombe 2006)",
    WILSON: "Wilson's score method (Wilson 1927)",
}
# Steps that change few images of these kinds, and are long to describe: config.json has them.
SPECIAL = {"decode", "deep grey", "transparency", "orientation", "frames", "network"}


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
    model = [*_data(run), *_features(run), *_heads(run)] if run.external is None else external_methods(run)
    used = [*model, *_evaluation(run, evaluation), *_software(run)]
    return " ".join([*used, *_references(" ".join(used))])


def _data(run: Run) -> Iterator[str]:
    dataset, sizes = run.config.dataset, {size.split: size for size in run.split_sizes()}
    unreadable = f"; {len(dataset.unreadable):,} of them were unreadable and omitted" if dataset.unreadable else ""
    yield f"The dataset {dataset.name} has {several(dataset.n_images, 'image')}{of_patients(dataset.n_patients)}{unreadable}."
    way = rule_named(dataset.split_by).method.format(seed=run.config.seed)
    names = {"train": "for training", "val": "for validation", "test": "for testing"}
    parts = [f"{_size(sizes[name])} {words}" for name, words in names.items() if name in sizes]
    yield f"{way}: {', '.join(parts)}."
    if run.leakage is not None and not run.leakage.not_compared:
        files = "" if run.config.embeddings.n_unseen == sum(dataset.n_split.values()) else ", identical files"
        yield (
            f"Splits were searched for shared patients{files} and near-duplicates (cosine of standardised "
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
    return f"{several(size.n_images, 'image')}{of_patients(size.n_patients)}"


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
    if facts.n_unseen:
        yield (
            f"The bytes of {several(facts.n_unseen, 'image')} were not known, because their embeddings were imported; "
            "identical files could not be searched among them."
        )
    for one in facts.of_each:
        yield from _features_of(run, one)
    if facts.several:
        dims = " and ".join(f"{one.encoder.dim_of(one.layers)}" for one in facts.several)
        yield (
            f"The embeddings of each image by these {len(facts.several)} encoders were concatenated ({dims} values), "
            "and each value was standardised by itself."
        )


def _features_of(run: Run, facts: CacheFacts) -> Iterator[str]:
    encoder = facts.encoder
    if is_elsewhere(facts.backbone):
        pooling = facts.preprocessing[ELSEWHERE]["pooling"]
        pooled = "" if pooling == "none" else f" An embedding is the {pooling}."
        yield (
            f"The embeddings of {encoder.dim} values were made elsewhere, by {encoder.title.removesuffix(SUFFIX)}, and "
            f"imported ({facts.weights_origin}); how images were preprocessed there is not known here.{pooled}"
        )
        return
    looks = looks_of(facts)
    yield (
        f"Each image was embedded {looks or 'once'} by a frozen {encoder.title} up to its {encoder.output} "
        f"({encoder.dim_of(facts.layers)} values) with {_weights(facts)} (SHA-256 {facts.weights_sha256[:16]}), in "
        f"{facts.precision.split(':')[0]}{f' ({facts.drift})' if facts.drift else ''}."
    )
    if len(facts.views) > 1:
        shown = ", of the whole image and of its region," if any(map(shows_region, facts.views)) else ""
        yield (
            "Heads that learn in steps saw one view of each image in a step, and their probabilities were averaged over "
            f"views; fitted heads took the mean embedding of an image's views. Each size and geometry{shown} has members of "
            "its own. "
            f"The distance from the training images is that in the view {facts.views[0]}."
        )
    unused = _unused_steps(run)
    steps = [f"{name} {plain(value)}" for name, value in facts.preprocessing.items() if name not in unused]
    special = "; special cases are in config.json" if SPECIAL & unused & facts.preprocessing.keys() else ""
    yield f"Preprocessing: {'; '.join(steps)}{special}."


def _weights(facts: CacheFacts) -> str:
    if facts.weights.startswith("random:"):
        return f"untrained, randomly initialised weights ({facts.weights})"
    if facts.weights in PUBLISHED_WORDS and facts.encoder.published is not None:
        return f"weights pretrained on {facts.encoder.published.title}"
    return f"the weights {facts.weights}"


def _suffixes(run: Run) -> set[str]:
    return {splitext(path)[1].lower() for path in run.predictions.paths}


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
    joined = "" if how is None else f"; the probability of a patient is the {how} over the {run.config.sample}s"
    yield f"Performance was measured on the {evaluation.samples()}{joined}."
    if area.is_optimistic:
        yield "The ROC AUC has no interval, because these images also selected the model; it is optimistic."
    elif area.why_none:
        yield f"The ROC AUC has no interval: {area.why_none}."
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
    yield from covariates_methods(run)
    yield from _more_images(run, evaluation)


def _more_images(run: Run, evaluation: Evaluation) -> Iterator[str]:
    """Yield how the learning curve was extrapolated, and how needed sample sizes were found, where these are shown."""
    outlook = outlook_of(run)
    if outlook is not None and not outlook.reason:
        yield (
            "The learning curve was extrapolated by an inverse power law (Figueroa et al. 2012), its 95% band by a bootstrap "
            "over the draws of training patients."
        )
    if outlook is not None and needs_text(run, evaluation):
        yield "Sample sizes for a validation were calculated for stated widths of 95% intervals (Riley et al. 2021)."


def _by(method: str) -> str:
    """Return a method of intervals with its reference and draws; DeLong's may come with the reason for its use."""
    if method.startswith(DELONG):
        return f"DeLong's method (DeLong et al. 1988){method.removeprefix(DELONG)}"
    return _BY_METHOD.get(method, method)


def _assessed(run: Run, first: FixedPoint, of_area: str) -> Iterator[str]:
    assert run.assessment is not None
    methods = tuple(one for one in point_methods(run.assessment) if not states_why(one))
    by = "the same method" if methods == (of_area,) else " or ".join(map(_by, methods))
    if len(run.assessment.classes) > 1:
        yield f"Thresholds were {run.config.thresholds} for each class against the rest."
    elif first.result is not None:
        if run.config.fixed_on not in (STATED, AS_CALLED):  # `External.frozen` already says these
            at = first.at(partial(threshold_text, scale=run.scale_of(run.selected)))
            chosen = f"Thresholds ({at}) were" if first.by_fold else f"The threshold ({at}) was"
            cited = " (Youden 1950)" if first.point.name == YOUDEN else ""
            yield f"{chosen} {run.config.thresholds} by {first.point.name}{cited}."
        if methods:
            yield f"The 95% intervals of sensitivity, specificity and predictive values are by {by}."
    yield from _calibrated(run, run.assessment)
    if run.config.prevalence is not None:
        benefit = " and net benefit" if run.assessment.classes[0].net_benefit is not None else ""
        yield f"Predictive values{benefit} are also given for a prevalence of {run.config.prevalence:g}."
        shifts = dict.fromkeys(one.shift for one in run.assessment.classes if one.shift)
        yield from (f"For net benefit, probabilities were {shift}, to the stated one." for shift in shifts)
    if run.assessment.subgroups:
        names = ", ".join(dict.fromkeys(one.attribute for one in run.assessment.subgroups))
        yield f"Subgroups were those of {names}.{_compared(run.assessment, run.config.sample)}"


def _calibrated(run: Run, assessment: Assessment) -> Iterator[str]:
    """Yield how calibration and net benefit were assessed, of which probabilities."""
    found = [
        one for one in (assessment.calibration, *(one.calibration for one in assessment.classes)) if one is not None
    ]
    if not found:
        return
    unused = [one.temperature.reason for one in found]
    temperature = f"a temperature fitted on {run.config.validated_on} (Guo et al. 2017)"
    scaled, whose = f", before and after scaling by {temperature}", " of the rescaled probabilities"
    if all(unused):
        what = "no temperature" if unused[0] == NOT_FITTED else temperature
        scaled, whose = f"; {what} was {'applied' if unused[0] == NOT_FITTED else 'not applied'} ({unused[0]})", ""
    yield (
        f"Calibration was assessed in ten bins of equal mass (Nixon et al. 2019){_smoothed(assessment)}{scaled}; net benefit "
        f"by decision curves (Vickers and Elkin 2006){whose}."
    )


def _smoothed(found: Assessment) -> str:
    """Return how calibration curves were smoothed, if they were."""
    fits = [found.calibration, *(one.calibration for one in found.classes)]
    curves = [one.before.curve for one in fits if one is not None and one.before.curve is not None]
    if not any(curve.p for curve in curves):
        return ""
    units = (
        "patients" if any(curve.ici is not None and curve.ici.method == BOOTSTRAP for curve in curves) else "samples"
    )
    return (
        f", and by restricted cubic splines of the logit (Harrell 2015) with bands from {N_CURVES} draws of {units}; ICI, "
        "E50 and E90 are the mean, median and 90th percentile of the distance (Austin and Steyerberg 2019)"
    )


def _compared(found: Assessment, sample: str) -> str:
    """Return how subgroups were compared, if they were."""
    if not any(one.p is not None for one in found.heterogeneity):
        return ""
    return (
        " Differences between them have intervals by squaring and adding (Zou and Donner 2008). Heterogeneity was tested "
        f"by Cochran's Q with pooled variances (Cochran 1954), with a design effect where patients have several {sample}s "
        "(Rao and Scott 1981), p values corrected by Holm's method (Holm 1979)."
    )


def _software(run: Run) -> Iterator[str]:
    config, unused = run.config, set() if _has_dicom(run) else {"pydicom"}
    device = f"device {config.device}; "
    if config.sample != "image":
        unused, device = OF_EMBEDDINGS, ""
    used = [f"{name} {version}" for name, version in config.versions.items() if name not in unused]
    yield f"Software: {', '.join(used)}; {device}seed {config.seed}."


def _references(text: str) -> Iterator[str]:
    found = [f"{cited}, {place}" for cited, place in LITERATURE.items() if cited in text]
    if found:
        yield f"References: {'; '.join(found)}."
