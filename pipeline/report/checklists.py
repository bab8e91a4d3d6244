"""What a run answers of two checklists for papers. The author answers the other items.

CLAIM 2024: Tejani et al. (2024), Radiology: Artificial Intelligence 6(4), e240300. TRIPOD+AI: Collins et al. (2024), BMJ
385, e078378. Items have short names here; read their text in the original.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hoarfrost.experiment.splits import rule_named
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation
from hoarfrost.report.words import decimal, estimate_text, listed, rule, several, threshold_text
from hoarfrost.runs import HeadResult, Run

CLAIM = (
    ("1", "title: a study of artificial intelligence, and of which kind", "technology"),
    ("2", "structured abstract", ""),
    ("3", "background, and the intended role of the model", ""),
    ("4", "aims and hypotheses", ""),
    ("5", "prospective or retrospective", ""),
    ("6", "goal of the study", ""),
    ("7", "sources of data", "source"),
    ("8", "inclusion and exclusion", ""),
    ("9", "preprocessing", "preprocessing"),
    ("10", "selection of subsets of the data", ""),
    ("11", "de-identification", ""),
    ("12", "missing data", "missing"),
    ("13", "image acquisition", ""),
    ("14", "reference standard: method", ""),
    ("15", "reference standard: why this one", ""),
    ("16", "reference standard: who annotated", ""),
    ("17", "annotation of the testing data", ""),
    ("18", "variability within and between annotators", ""),
    ("19", "how data were assigned to partitions", "partition"),
    ("20", "at which level partitions are disjoint", "disjoint"),
    ("21", "intended sample size", ""),
    ("22", "the model in detail", "model"),
    ("23", "software", "software"),
    ("24", "initialisation of the parameters", "weights"),
    ("25", "training", "training"),
    ("26", "how the final model was selected", "selection"),
    ("27", "ensembles", "ensemble"),
    ("28", "metrics of performance", "metrics"),
    ("29", "significance and uncertainty", "uncertainty"),
    ("30", "robustness, sensitivity analysis", "robustness"),
    ("31", "explainability", ""),
    ("32", "evaluation on internal data", "internal"),
    ("33", "testing on external data", ""),
    ("34", "registration of a clinical trial", ""),
    ("35", "patients or examinations included and excluded", "included"),
    ("36", "demographic and clinical characteristics by partition", "characteristics"),
    ("37", "performance with uncertainty", "performance"),
    ("38", "diagnostic performance with precision", "diagnostic"),
    ("39", "analysis of failures", "failures"),
    ("40", "limitations", ""),
    ("41", "implications for practice", ""),
    ("42", "protocol, further technical details", ""),
    ("43", "availability of software, model and data", ""),
    ("44", "funding", ""),
)
TRIPOD = (
    ("1", "title", ""),
    ("2", "abstract", ""),
    ("3a", "health care context and rationale", ""),
    ("3b", "target population, intended purpose and users", ""),
    ("3c", "known health inequalities", ""),
    ("4", "objectives", ""),
    ("5a", "sources of data", "source"),
    ("5b", "dates of the data", ""),
    ("6a", "setting", ""),
    ("6b", "eligibility", ""),
    ("6c", "treatments", ""),
    ("7", "preparation of the data", "preprocessing"),
    ("8a", "definition of the outcome", "outcome"),
    ("8b", "assessors of the outcome", ""),
    ("8c", "blinding of the outcome's assessment", ""),
    ("9a", "choice of predictors", "predictors"),
    ("9b", "definition of predictors", "predictors"),
    ("9c", "assessors of predictors", ""),
    ("10", "sample size, and how it was arrived at", ""),
    ("11", "missing data", "missing"),
    ("12a", "use of the data, partitions", "partition"),
    ("12b", "handling of predictors", "preprocessing"),
    ("12c", "type of model, building, tuning, internal validation", "training"),
    ("12d", "heterogeneity between clusters: how handled", "heterogeneity"),
    ("12e", "measures and plots of performance", "metrics"),
    ("12f", "updating of the model", "recalibration"),
    ("12g", "how predictions were calculated", "model"),
    ("13", "class imbalance", "imbalance"),
    ("14", "fairness", "subgroups"),
    ("15", "output of the model, thresholds", "thresholds"),
    ("16", "differences between development and evaluation data", ""),
    ("17", "ethical approval", ""),
    ("18a", "funding", ""),
    ("18b", "conflicts of interest", ""),
    ("18c", "protocol", ""),
    ("18d", "registration", ""),
    ("18e", "sharing of data", ""),
    ("18f", "sharing of code", ""),
    ("19", "involvement of patients and the public", ""),
    ("20a", "flow of participants", "included"),
    ("20b", "characteristics of participants", "characteristics"),
    ("20c", "development and evaluation data compared", ""),
    ("21", "participants and outcomes in each analysis", "by_class"),
    ("22", "the full model", "files"),
    ("23a", "performance with intervals, key subgroups too", "performance"),
    ("23b", "heterogeneity of performance", "subgroups"),
    ("24", "results of updating", "recalibration"),
    ("25", "interpretation", ""),
    ("26", "limitations", ""),
    ("27a", "poor or missing input in use", ""),
    ("27b", "interaction with users, and their expertise", ""),
    ("27c", "next steps", ""),
)


@dataclass(frozen=True)
class Item:
    """One item of a checklist; `answer` is empty if the author has to answer it."""

    number: str
    name: str
    answer: str


def checklists_of(run: Run, evaluation: Evaluation) -> dict[str, tuple[Item, ...]]:
    """Return both checklists with the run's answers."""
    answers = {name: answer(run, evaluation) for name, answer in ANSWERS.items()}
    return {
        "CLAIM 2024": tuple(Item(number, name, answers.get(key, "")) for number, name, key in CLAIM),
        "TRIPOD+AI": tuple(Item(number, name, answers.get(key, "")) for number, name, key in TRIPOD),
    }


def _source(run: Run, _: Evaluation) -> str:
    dataset = run.config.dataset
    return f"{dataset.name}, from {dataset.source}; the author states where and how they were collected"


def _preprocessing(_: Run, __: Evaluation) -> str:
    return "see Methods; embeddings standardised by the training split"


def _missing(run: Run, _: Evaluation) -> str:
    unreadable = len(run.config.dataset.unreadable)
    labels = "; unknown labels do not count in the loss and in the metrics" if run.config.dataset.is_multilabel else ""
    return f"{several(unreadable, 'unreadable image')} omitted{labels}"


def _partition(run: Run, _: Evaluation) -> str:
    sizes = [f"{SPLIT_NAMES[size.split]} {size.n_images:,}" for size in run.split_sizes()[:-1]]
    return f"{rule_named(run.config.dataset.split_by).origin}: images in {', '.join(sizes)}; seed {run.config.seed}"


def _disjoint(run: Run, _: Evaluation) -> str:
    if run.leakage is None or run.config.dataset.n_patients is None:
        return "image; patients are unknown"
    if run.leakage.n_patients or run.leakage.n_contents:
        shared = several(run.leakage.n_patients, "patient"), several(run.leakage.n_contents, "file")
        return f"not disjoint; in two splits: {', '.join(shared)}"
    return "patient; no patient and no file is in two splits"


def _model(run: Run, _: Evaluation) -> str:
    head = run.head(run.selected)
    return f"frozen {run.config.embeddings.encoder.title}, then {head.name} ({several(head.n_parameters, 'parameter')})"


def _predictors(run: Run, _: Evaluation) -> str:
    encoder = run.config.embeddings.encoder
    return f"the image alone: {encoder.dim} values of {encoder.title}"


def _training(run: Run, _: Evaluation) -> str:
    config, head = run.config, run.head(run.selected)
    values = {"learning rate": head.learning_rate, "weight decay": head.weight_decay, "dropout": head.dropout}
    known = "".join(f", {name} {value:g}" for name, value in values.items() if value is not None)
    ways = [f"AdamW ({config.schedule}){known}" if head.epochs or head.shares else "to convergence with an L2 penalty"]
    ways += [] if config.patience is None else ["early stopping by the validation loss"]
    ways += [] if config.n_cross_fit is None else [f"cross-fitted in {config.n_cross_fit} folds"]
    return f"{', '.join(ways)}, {several(len(run.heads), 'variant')}"


def _ensemble(head: HeadResult) -> str:
    parts = f" ({', '.join(f'{share:.2f} {name}' for name, share in head.shares.items())})" if head.shares else ""
    return f"mean of {head.n_members} trained heads{parts}" if head.n_members > 1 else "none"


def _robustness(run: Run, _: Evaluation) -> str:
    n_members = run.head(run.selected).n_members
    done = [several(n_members, "trained head")] if n_members > 1 else []
    if run.cross_validation is not None:
        done.append(f"nested cross-validation in {run.cross_validation.n_folds} folds")
    if run.repeats is not None:
        done.append(f"{run.repeats.n_splits} random splits")
    if run.learning_curve:
        done.append("learning curve")
    if run.shortcuts:
        done.append("audit for shortcuts")
    return ", ".join(done)


def _uncertainty(run: Run, evaluation: Evaluation) -> str:
    method = evaluation.area(run.head(run.selected)).method
    tests = "; paired tests, p values corrected by Holm" if run.comparisons else ""
    return f"95% intervals{f' ({method})' if method else ''}{tests}"


def _included(run: Run, _: Evaluation) -> str:
    dataset, unreadable = run.config.dataset, len(run.config.dataset.unreadable)
    patients = "" if dataset.n_patients is None else f" of {several(dataset.n_patients, 'patient')}"
    return f"{several(dataset.n_images, 'image')}{patients}, {unreadable:,} omitted as unreadable"


def _characteristics(run: Run, _: Evaluation) -> str:
    cohort = run.config.dataset.cohort
    names = dict.fromkeys(one.attribute for one in (cohort.characteristics if cohort else ()))
    return f"by split and class: {listed(list(names))}; the author adds others" if names else ""


def _by_class(run: Run, evaluation: Evaluation) -> str:
    if run.assessment is None:
        return ""
    found = [f"{one.n_positive:,} of {one.n:,} {one.name}" for one in run.assessment.classes]
    return f"{evaluation.split_name}: {listed(found)}"


def _performance(run: Run, evaluation: Evaluation) -> str:
    return f"ROC AUC {estimate_text(evaluation.area(run.head(run.selected)))} on {evaluation.samples()}"


def _diagnostic(run: Run, _: Evaluation) -> str:
    first = None if run.assessment is None or len(run.assessment.classes) > 1 else run.assessment.classes[0].points[0]
    if first is None or first.result is None:
        return ""
    found = {"sensitivity": first.result.sensitivity, "specificity": first.result.specificity}
    return ", ".join(f"{name} {estimate_text(one)}" for name, one in found.items())


def _subgroups(run: Run, _: Evaluation) -> str:
    names = dict.fromkeys(one.attribute for one in (run.assessment.subgroups if run.assessment else ()))
    return f"ROC AUC by {listed(list(names))}; the author states whether these groups matter" if names else ""


def _recalibration(run: Run, _: Evaluation) -> str:
    found = None if run.assessment is None else run.assessment.calibration
    if found is None:
        return ""
    errors = f"{decimal(found.before.error)}, then {decimal(found.after.error)}"
    return f"temperature {found.temperature.temperature:.2f}; calibration error {errors}"


def _thresholds(run: Run, _: Evaluation) -> str:
    if run.assessment is None:
        return "a probability for each class"
    text = partial(threshold_text, scale=run.scale_of(run.selected))
    points = [f"{one.at(text)} ({rule(one.point.name)})" for one in run.assessment.classes[0].points if one.result]
    return f"a probability for each class; thresholds for {run.assessment.classes[0].name}: {'; '.join(points)}"


def _outcome(_: Run, evaluation: Evaluation) -> str:
    return f"the dataset's labels: {listed(evaluation.classes)}; the author states what they mean"


def _imbalance(run: Run, _: Evaluation) -> str:
    return "classes weighted in the loss" if run.config.class_weight == "balanced" else "not corrected"


def _failures(run: Run, _: Evaluation) -> str:
    return (
        "" if run.suspects is None else f"{several(len(run.suspects.images), 'image')} with a contradicted label listed"
    )


ANSWERS: Mapping[str, Callable[[Run, Evaluation], str]] = {
    "technology": lambda run, _: f"heads on frozen deep features ({run.config.embeddings.encoder.title})",
    "source": _source,
    "preprocessing": _preprocessing,
    "missing": _missing,
    "partition": _partition,
    "disjoint": _disjoint,
    "model": _model,
    "software": lambda run, _: ", ".join(f"{name} {version}" for name, version in run.config.versions.items()),
    "weights": lambda run, _: f"backbone: {run.config.embeddings.weights}; heads: random, seed {run.config.seed}",
    "training": _training,
    "selection": lambda run, _: f"{run.config.selection}: {run.selected}",
    "ensemble": lambda run, _: _ensemble(run.head(run.selected)),
    "metrics": lambda run, _: (
        "ROC AUC" + ("" if run.assessment is None else ", operating points, calibration, net benefit")
    ),
    "uncertainty": _uncertainty,
    "robustness": _robustness,
    "internal": _performance,
    "included": _included,
    "characteristics": _characteristics,
    "by_class": _by_class,
    "performance": _performance,
    "diagnostic": _diagnostic,
    "failures": _failures,
    "heterogeneity": _subgroups,
    "subgroups": _subgroups,
    "recalibration": _recalibration,
    "thresholds": _thresholds,
    "outcome": _outcome,
    "predictors": _predictors,
    "imbalance": _imbalance,
    "files": lambda run, _: f"weights in the run's folder: {run.head(run.selected).weights_file}",
}
