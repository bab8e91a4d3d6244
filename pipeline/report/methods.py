"""A paragraph of methods, ready to paste into a paper: a sentence each, from the run's own values."""

from collections.abc import Iterator

from hoarfrost.evaluation.intervals import BOOTSTRAP
from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.provenance import plain
from hoarfrost.report.words import count, decimal, several
from hoarfrost.runs import EmbeddingFacts, FixedPoint, Run, SplitSize

MOST_HEADS = 6


def methods_of(run: Run, evaluation: Evaluation) -> str:
    """Write the methods of a run.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation

    Returns
    -------
    str
        One paragraph; what the run did not do is not in it.
    """
    return " ".join(
        [*_data(run), *_features(run.config.embeddings), *_heads(run), *_evaluation(run, evaluation), *_software(run)]
    )


def _data(run: Run) -> Iterator[str]:
    dataset, sizes = run.config.dataset, {size.split: size for size in run.split_sizes()}
    patients = "" if dataset.n_patients is None else f" of {several(dataset.n_patients, 'patient')}"
    unreadable = (
        f"; {count(len(dataset.unreadable))} of them could not be read and were left out" if dataset.unreadable else ""
    )
    yield f"The dataset {dataset.name} has {several(dataset.n_images, 'image')}{patients}{unreadable}."
    way = rule_named(dataset.split_by).method.format(seed=run.config.seed)
    names = {"train": "for training", "val": "for validation", "test": "for testing"}
    parts = [f"{_size(sizes[name])} {words}" for name, words in names.items() if name in sizes]
    yield f"{way}: {', '.join(parts)}."
    if run.leakage is not None and not run.leakage.not_compared:
        yield (
            "Splits were searched for shared patients, identical files and near-duplicates (a cosine above "
            f"{run.leakage.threshold:g} of standardised embeddings): {_leaks(run)}."
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
    texts = [several(n, noun) for n, noun in kinds if n]
    return ", ".join(texts) if texts else "none was found"


def _features(facts: EmbeddingFacts) -> Iterator[str]:
    encoder = facts.encoder
    untrained = facts.weights.startswith("random:")
    weights = (
        f"untrained, randomly initialised weights ({facts.weights})"
        if untrained
        else f"weights pretrained on {encoder.published.title}"
        if facts.weights == "imagenet" and encoder.published is not None
        else f"the weights {facts.weights}"
    )
    yield (
        f"Each image was embedded once by a frozen {encoder.title} up to its {encoder.output} ({encoder.dim} values), with "
        f"{weights}, SHA-256 {facts.weights_sha256[:16]}, in {facts.precision.split(':')[0]}."
    )
    steps = "; ".join(f"{name} {plain(value)}" for name, value in facts.preprocessing.items())
    yield f"Preprocessing: {steps}."


def _heads(run: Run) -> Iterator[str]:
    config, names = run.config, [head.name for head in run.heads]
    listed = ", ".join(names[:MOST_HEADS]) + (" and others" if len(names) > MOST_HEADS else "")
    loss = "binary cross-entropy of each label" if config.dataset.is_multilabel else "cross-entropy"
    smoothing = f" with label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
    balanced = ", classes weighted to count the same" if config.class_weight == "balanced" else ""
    what = f"{len(names)} heads ({listed}) were" if len(names) > 1 else f"One head ({listed}) was"
    yield (
        f"{what} trained on embeddings standardised by the training split, with AdamW ({config.schedule} learning rate, "
        f"batches of {config.batch_size}), {loss}{smoothing}{balanced}, for at most {several(config.epochs, 'epoch')}; "
        f"training stopped when the validation loss had not fallen for {several(config.patience, 'epoch')}, and the best "
        "epoch was kept."
    )
    if config.seeds > 1:
        yield f"Each head was trained with {config.seeds} seeds, whose probabilities were averaged."
    chosen = run.head(run.selected)
    yield (
        f"The head with the highest validation ROC AUC was selected: {chosen.name}, "
        f"{several(chosen.n_parameters, 'parameter')}, learning rate {chosen.learning_rate:g}, weight decay "
        f"{chosen.weight_decay:g}, dropout {chosen.dropout:g}."
    )


def _evaluation(run: Run, evaluation: Evaluation) -> Iterator[str]:
    scores = evaluation.scores(run.head(run.selected))
    joined = (
        "" if run.config.per_patient is None else f", a patient's being the {run.config.per_patient} over their images"
    )
    yield f"Performance is that on the {evaluation.samples()}{joined}."
    if scores.auc.method:
        yield f"ROC AUC is given with its 95% interval ({scores.auc.method})."
    if run.comparisons:
        yield "Heads were compared with the selected one by paired tests of ROC AUCs, p values corrected by Holm's method."
    if run.assessment is not None:
        yield from _assessed(run, run.assessment.classes[0].points[0])
    if run.cross_validation is not None:
        yield (
            f"The whole procedure, selection included, was also cross-validated in {run.cross_validation.n_folds} folds, "
            "predictions of the held-out parts being pooled."
        )


def _assessed(run: Run, first: FixedPoint) -> Iterator[str]:
    assert run.assessment is not None
    if len(run.assessment.classes) == 1 and first.result is not None:
        at, found = decimal(first.point.threshold), first.result
        methods = {share.method for share in (found.sensitivity, found.specificity, found.ppv, found.npv)}
        yield (
            f"The operating point was fixed on validation by {first.point.name} (threshold {at}); "
            "intervals of sensitivity, specificity and predictive values are "
            + ("by bootstrap over patients." if BOOTSTRAP in methods else "Wilson's.")
        )
    else:
        yield "Operating points were fixed on validation for each class against the rest."
    yield (
        "Calibration was assessed in ten bins of equal mass before and after a temperature fitted on validation; net benefit "
        "by decision curves of the recalibrated probabilities."
    )
    if run.config.prevalence is not None:
        yield f"Predictive values and net benefit are also given for a prevalence of {run.config.prevalence:g}."
    if run.assessment.subgroups:
        names = ", ".join(dict.fromkeys(one.attribute for one in run.assessment.subgroups))
        yield f"Subgroups were those of {names}."


def _software(run: Run) -> Iterator[str]:
    config = run.config
    versions = ", ".join(f"{name} {version}" for name, version in config.versions.items())
    yield f"Software: {versions}; {config.machine}, device {config.device}, seed {config.seed}."
    yield f"The embeddings' fingerprint is {config.embeddings.fingerprint[:16]}."
