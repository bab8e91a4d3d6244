"""The model card: what a reader must know about an exported model, from the run. It names no image and no patient."""

from collections.abc import Iterator, Sequence

from hoarfrost.evaluation import ShownIn, metrics_of
from hoarfrost.experiment.splits import rule_named
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.export.metadata import INPUT, OUTPUTS, RESEARCH, input_size, operating_points, preparation
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation, evaluation_of
from hoarfrost.report.explore import promises
from hoarfrost.report.first import Caution, grave_warnings, task_of, warnings_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.trust import subgroup_rows
from hoarfrost.report.words import NONE, count, decimal, estimate_text, interval, of_patients, rule, several
from hoarfrost.runs import Run

TITLE = "# Model card: "
MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "[": "\\[", "*": "\\*"})


def model_card(run: Run, head: SavedHead, file: str, made: Sequence[str]) -> str:
    """Return the card of an exported head, in Markdown.

    `file` is the model's file name, `made` are sentences on how it was exported.

    References
    ----------
    Mitchell et al. (2019), Model Cards for Model Reporting, FAT*.
    """
    evaluation = evaluation_of(run)
    sections = {
        "What it is": [*_facts(run, head, file), "", " ".join(map(_text, made))],
        "Intended use": _intended(run),
        "How to use it": _usage(head, file),
        "Data": _data(run),
        f"Scores ({evaluation.split_name} split)": _scores(run, head, evaluation),
        "Thresholds": _thresholds(run, head, evaluation),
        "Subgroups": _subgroups(run, head),
        "Cautions": _cautions(run, evaluation),
        "Limits": _limits(run, head),
        "How it was made": [_text(methods_of(run, evaluation))],
    }
    lines = [f"{TITLE}{_text(task_of(evaluation.classes, run.config.dataset))}", "", f"**{RESEARCH}**"]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _facts(run: Run, head: SavedHead, file: str) -> Iterator[str]:
    embeddings = run.config.embeddings
    weights = f"weights {embeddings.weights} (SHA-256 {embeddings.weights_sha256})"
    found = head.validated[0].temperatures
    temperatures = ", ".join(f"{temperature:.3g}" for temperature in found)
    rows = {
        "file": f"`{file}`",
        "classes": ", ".join(head.names),
        "encoder": f"{embeddings.backbone}, frozen; {weights}",
        "head": head.name,
        "members": _members(head),
        "selected by the run": "yes" if head.name == run.selected else f"no, the run selected {run.selected}",
        "fingerprint of the embeddings": embeddings.fingerprint,
        "precision of the embeddings": embeddings.precision.partition(":")[0],
        "calibration": "none (temperature 1)"
        if set(found) == {1.0}
        else f"temperature {temperatures}, fitted on validation",
        "trained": run.config.created,
    }
    yield from _table(("property", "value"), list(rows.items()))


def _members(head: SavedHead) -> str:
    """Return how many trainings predict together, of which kinds, and the weight of each kind."""
    of_kinds: dict[str, list[float]] = {}
    for member in head.members:
        of_kinds.setdefault(member.spec.shape, []).append(member.weight)
    if len(head.members) == 1:
        return f"1, {next(iter(of_kinds))}"
    kinds = [f"{len(weights)} x {kind} ({sum(weights):.0%})" for kind, weights in of_kinds.items()]
    return f"{len(head.members)}, whose probabilities are averaged: {', '.join(kinds)}"


def _intended(run: Run) -> Iterator[str]:
    yield (
        "For research on images like the training images: the same kind of image, device and patients. This is not a "
        "medical device. Do not use it to diagnose, treat or triage anyone. It has not been tested prospectively."
    )
    if run.config.embeddings.weights.startswith("random:"):
        yield "\nThe encoder is untrained. Use this model only as a baseline for comparison."


def _usage(head: SavedHead, file: str) -> Iterator[str]:
    size = input_size(head)
    yield f"{preparation(head)} The model itself contains normalisation, encoder, standardisation, head and temperature."
    yield ""
    shape = f"float32 (N, {len(head.names)})"
    yield from _table(
        ("name", "content"),
        [
            (f"input `{INPUT}`", f"uint8 (N, 3, {size}, {size}), RGB; any number N of images"),
            (f"output `{OUTPUTS[0]}`", f"{shape}, calibrated, in the order of the classes"),
            (f"output `{OUTPUTS[1]}`", f"{shape}, before calibration, as in the run's predictions.csv"),
        ],
    )
    name = file.replace("\\", "\\\\").replace('"', '\\"')
    yield "\n```python"
    if file.endswith(".onnx"):
        yield "import onnxruntime"
        yield f'session = onnxruntime.InferenceSession("{name}")'
        yield f'probabilities, uncalibrated = session.run(None, {{"{INPUT}": images}})'
        yield "metadata = session.get_modelmeta().custom_metadata_map"
    else:
        yield "import torch"
        yield 'extra = {"metadata.json": ""}'
        yield f'program = torch.export.load("{name}", extra_files=extra)'
        yield "probabilities, uncalibrated = program.module()(images)"
    yield "```"


def _data(run: Run) -> Iterator[str]:
    dataset = run.config.dataset
    patients = "patients unknown" if dataset.n_patients is None else several(dataset.n_patients, "patient")
    split = rule_named(dataset.split_by).brief
    yield f"{_text(dataset.name)}: {several(dataset.n_images, 'image')}, {patients}; split {split}."
    if dataset.unreadable:
        yield f"{several(len(dataset.unreadable), 'image')} could not be read and were skipped."
    yield ""
    rows = []
    for size in run.split_sizes():
        n_patients = NONE if size.n_patients is None else count(size.n_patients)
        of_labels = [count(size.counts.get(label, 0)) for label in dataset.classes]
        rows.append((SPLIT_NAMES.get(size.split, size.split), count(size.n_images), n_patients, *of_labels))
    yield from _table(("split", "images", "patients", *dataset.classes), rows)


def _scores(run: Run, head: SavedHead, evaluation: Evaluation) -> Iterator[str]:
    scores = evaluation.scores(run.head(head.name))
    shown = list(metrics_of([scores], ShownIn.EVERYWHERE))
    printed = [(metric, scores.printed(metric.key) or scores[metric.key]) for metric in shown]
    rows = [
        (evaluation.title_of(metric), decimal(found.value), interval(found.interval), found.method or NONE)
        for metric, found in printed
    ]
    yield from _table((f"metric on {evaluation.samples()}", "value", "95% CI", "method of the interval"), rows)
    if run.cross_validation is not None and head.name == run.selected:
        folded = run.cross_validation
        images = f"{folded.n_images:,} images{of_patients(folded.whole.pooled.n_patients)}"
        yield (
            f"\nCross-validated in {folded.n_folds} folds of {images}, selection included: ROC AUC "
            f"{estimate_text(folded.whole.pooled.auc)}. {folded.meaning}"
        )
    for metric in shown:
        if metric.baseline:
            title, guess = evaluation.title_of(metric), decimal(scores.value_or_none(metric.baseline))
            yield f"\n{title[0].upper()}{title[1:]}: {evaluation.decided_by(run.head(head.name))}, before calibration."
            yield f"\n{title[0].upper()}{title[1:]} of always predicting the most frequent class: {guess}."
    recalibration = None if run.assessment is None else run.assessment.calibration
    if head.name == run.selected and recalibration is not None:
        before, after = recalibration.before, recalibration.after
        yield (
            f"\nExpected calibration error: {decimal(before.error)} before and {decimal(after.error)} after temperature "
            f"scaling. Perfectly calibrated probabilities would have {decimal(after.error_by_chance)} by chance."
        )


def _thresholds(run: Run, head: SavedHead, evaluation: Evaluation) -> Iterator[str]:
    if not any(head.validated[0].points):
        yield "None: with more than two classes, the most probable class is predicted."
        return
    yield (
        "Chosen on the validation split. A class is predicted if its calibrated probability is at or above the threshold. "
        "The first rule of each class decides what `hoarfrost predict` reports.\n"
        if run.config.per_patient is None
        else "For single images, chosen on the validation split. A class is predicted if its calibrated probability is at or "
        "above the threshold. Patients have other thresholds, see below.\n"
    )
    columns = ("threshold", "before calibration", "validation sensitivity", "validation specificity")
    rows = [
        (
            one["class"], rule(one["rule"]), f"{one['threshold']:.6g}", f"{one['threshold_uncalibrated']:.6g}",
            decimal(one["validation_sensitivity"]), decimal(one["validation_specificity"]),
        )
        for one in operating_points(head)
    ]  # fmt: skip
    yield from _table(("class", "rule", *columns), rows)
    if head.name == run.selected and run.assessment is not None:
        yield f"\nResults on the {evaluation.split_name} split, per {run.assessment.unit} (95% CI):\n"
        results = [
            (
                one.name, rule(fixed.point.name), f"{fixed.point.threshold:.6g}",
                estimate_text(fixed.result.sensitivity),
                estimate_text(fixed.result.specificity),
            )
            for one in run.assessment.classes
            for fixed in one.points
            if fixed.result is not None
        ]  # fmt: skip
        yield from _table(("class", "rule", "before calibration", "sensitivity", "specificity"), results)
        yield from (f"\n{_text(sentence)}" for sentence in promises(run.assessment))
        reasons = [
            (one.name, fixed.point) for one in run.assessment.classes for fixed in one.points if fixed.result is None
        ]
        yield from (f"\n{_text(name)}, {rule(point.name)}: {_text(point.reason)}." for name, point in reasons)


def _subgroups(run: Run, head: SavedHead) -> Iterator[str]:
    rows = subgroup_rows(run.assessment) if head.name == run.selected else ()
    if not rows:
        yield "Not assessed: the dataset has no attributes, or this is not the head that the run selected."
        return
    intervals = ("ROC AUC (95% CI)", "sensitivity (95% CI)", "specificity (95% CI)")
    cells = [
        (
            one.attribute, one.value, *map(count, one.counts), one.roc_auc, one.sensitivity or NONE,
            one.specificity or NONE, one.reason,
        )
        for one in rows
    ]  # fmt: skip
    yield from _table(("attribute", "value", *head.names, *intervals, "note"), cells)


def _cautions(run: Run, evaluation: Evaluation) -> Iterator[str]:
    yield f"- {_leakage(run)}"
    found: list[Caution] = [*grave_warnings(run, evaluation), *warnings_of(run, evaluation)]
    # Those about leakage quote paths and patients.
    yield from (
        f"- **{_text(one.title)}**: {_text(one.text)}" for one in found if one.section not in {"leakage", "provenance"}
    )
    if run.config.embeddings.weights.startswith("random:"):
        yield f"- **Untrained encoder** ({run.config.embeddings.weights}): all scores are a baseline, not a result."


def _leakage(run: Run) -> str:
    if run.leakage is None:
        return "**Leakage** was not checked."
    found = run.leakage
    kinds = [
        several(found.n_patients, "patient"),
        several(found.n_contents, "identical image"),
        several(found.n_near_duplicates, "pair") + " of near-identical images",
    ]
    near = f" (near-duplicates were not checked: {found.not_compared})" if found.not_compared else ""
    return f"**Leakage** between splits: {', '.join(kinds)}{near}."


def _limits(run: Run, head: SavedHead) -> Iterator[str]:
    yield "- The model returns a probability for any image, even if it is unlike the training images."
    yield "- Probabilities are calibrated to the validation split's mix of classes. At another prevalence they are not."
    if head.header.fingerprint.precision.partition(":")[0] != "float32":
        yield "- The head was trained on embeddings of another precision than the float32 of this file."
    if run.config.dataset.no_test_split:
        yield f"- {run.config.dataset.no_test_split}"
    yield "- The scores are from one dataset. They may differ in other hospitals, on other devices and in other years."


# -- Markdown -----------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, header))} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(_text, row))} |" for row in rows)


def _text(text: str) -> str:
    """Keep a label from being read as Markdown or HTML."""
    return " ".join(text.split()).translate(MARKDOWN)
