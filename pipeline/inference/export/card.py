"""The model card: what a reader must know of an exported model, from the run's facts. It names no image and no patient."""

from collections.abc import Iterator, Sequence

from hoarfrost.evaluation import ShownIn, metrics_of
from hoarfrost.evaluation.intervals import SharePlace, share_at
from hoarfrost.experiment.splits import rule_named
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.export.metadata import INPUT, OUTPUTS, RESEARCH, operating_points, preparation
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation, evaluation_of
from hoarfrost.report.first import Caution, grave_warnings, task_of, warnings_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.trust import subgroup_rows
from hoarfrost.report.words import NONE, count, decimal, estimate_text, interval, rule, several
from hoarfrost.runs import Run

TITLE = "# Model card: "


def model_card(run: Run, head: SavedHead, file: str, made: Sequence[str]) -> str:
    """Write the card, in Markdown.

    Parameters
    ----------
    run : Run
    head : SavedHead
        The one that was exported.
    file : str
        The model's file name.
    made : sequence of str
        Sentences on how it was exported.

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
    embeddings, seeds = run.config.embeddings, len(head.seeds)
    yield from _table(
        ("what", "which"),
        [
            ("file", f"`{_text(file)}`"),
            ("classes", ", ".join(head.names)),
            (
                "backbone",
                f"{embeddings.backbone}, frozen; weights {embeddings.weights} (SHA-256 {embeddings.weights_sha256})",
            ),
            ("head", f"{head.spec.name}, {'the mean of ' if seeds > 1 else ''}{several(seeds, 'seed')}"),
            ("selected by the run", "yes" if head.spec.name == run.selected else f"no, that is {run.selected}"),
            ("fingerprint of the embeddings", embeddings.fingerprint),
            ("embeddings computed in", embeddings.precision.partition(":")[0]),
            (
                "calibration",
                f"temperature {', '.join(f'{t:.3g}' for t in head.validated[0].temperatures)}, from validation",
            ),
            ("trained", run.config.created),
        ],
    )


def _intended(run: Run) -> Iterator[str]:
    yield (
        "For research on images like those that it was trained on: the same kind of image, device and patients. It is "
        "no medical device: nobody may be diagnosed, treated or turned away by it, and it was tried on no patients to come."
    )
    if run.config.embeddings.weights.startswith("random:"):
        yield "\nIts backbone was never trained, so it is a floor to compare with, and of no other use."


def _usage(head: SavedHead, file: str) -> Iterator[str]:
    encoder = head.header.fingerprint.encoder
    yield f"{preparation(encoder)} Normalisation, backbone, standardisation, head and temperature are inside."
    yield ""
    yield from _table(
        ("name", "what"),
        [
            (f"input `{INPUT}`", f"uint8 (N, 3, {encoder.size}, {encoder.size}), RGB; N may be any number"),
            (f"output `{OUTPUTS[0]}`", f"float32 (N, {len(head.names)}), calibrated, in the order of the classes"),
            (
                f"output `{OUTPUTS[1]}`",
                f"float32 (N, {len(head.names)}), before calibration, as the run's predictions.csv",
            ),
        ],
    )
    yield ""
    yield "```python"
    if file.endswith(".onnx"):
        yield "import onnxruntime"
        yield f'session = onnxruntime.InferenceSession("{_code(file)}")'
        yield f'probabilities, uncalibrated = session.run(None, {{"{INPUT}": images}})'
        yield "metadata = session.get_modelmeta().custom_metadata_map"
    else:
        yield "import torch"
        yield 'extra = {"metadata.json": ""}'
        yield f'program = torch.export.load("{_code(file)}", extra_files=extra)'
        yield "probabilities, uncalibrated = program.module()(images)"
    yield "```"


def _data(run: Run) -> Iterator[str]:
    dataset = run.config.dataset
    patients = "unknown" if dataset.n_patients is None else count(dataset.n_patients)
    split = rule_named(dataset.split_by).brief
    yield f"{_text(dataset.name)}: {several(dataset.n_images, 'image')}, patients: {patients}; split {split}."
    if dataset.unreadable:
        yield f"{several(len(dataset.unreadable), 'image')} could not be read, and were left out."
    yield ""
    rows = []
    for size in run.split_sizes():
        n_patients = NONE if size.n_patients is None else count(size.n_patients)
        of_labels = [count(size.counts.get(label, 0)) for label in dataset.classes]
        rows.append((SPLIT_NAMES.get(size.split, size.split), count(size.n_images), n_patients, *of_labels))
    yield from _table(("split", "images", "patients", *dataset.classes), rows)


def _scores(run: Run, head: SavedHead, evaluation: Evaluation) -> Iterator[str]:
    scores, rows = evaluation.scores(run.head(head.spec.name)), []
    for metric in metrics_of([scores], ShownIn.EVERYWHERE):
        found, beside = scores[metric.key], []
        if found.interval is not None:
            beside.append(f"{interval(found.interval)}{f', {found.method}' if found.method else ''}")
        if metric.baseline:
            beside.append(f"always the most frequent: {decimal(scores.value_or_none(metric.baseline))}")
        rows.append((evaluation.title_of(metric), decimal(found.value), "; ".join(beside)))
    yield from _table((f"on {evaluation.samples()}", "value", "95% interval"), rows)
    recalibration = None if run.assessment is None else run.assessment.calibration
    if head.spec.name == run.selected and recalibration is not None:
        yield ""
        yield (
            f"Expected calibration error {decimal(recalibration.before.error)} before and "
            f"{decimal(recalibration.after.error)} after calibration; by chance "
            f"{decimal(recalibration.after.error_by_chance)}."
        )


def _thresholds(run: Run, head: SavedHead, evaluation: Evaluation) -> Iterator[str]:
    points = operating_points(head)
    if not points:
        yield "With more than two classes the most probable one is called; there is no threshold."
        return
    yield "Fixed on validation. An image is called the class where its calibrated probability is at or above the threshold."
    yield ""
    columns = ("class", "rule", "threshold", "before calibration")
    rows = [
        (one["class"], rule(one["rule"]), f"{one['threshold']:.6g}", f"{one['threshold_uncalibrated']:.6g}")
        for one in points
    ]
    yield from _table(columns, rows)
    if head.spec.name == run.selected and run.assessment is not None:
        yield ""
        yield f"What they do on the {evaluation.split_name} split, counting {run.assessment.unit}s (95% intervals):"
        yield ""
        yield from _table(
            ("class", "rule", "sensitivity", "specificity"),
            [
                (
                    one.name,
                    rule(fixed.point.name),
                    estimate_text(share_at(fixed.result.sensitivity, SharePlace.MODEL_CARD)),
                    estimate_text(share_at(fixed.result.specificity, SharePlace.MODEL_CARD)),
                )
                for one in run.assessment.classes
                for fixed in one.points
                if fixed.result is not None
            ],
        )


def _subgroups(run: Run, head: SavedHead) -> Iterator[str]:
    rows = subgroup_rows(run.assessment) if head.spec.name == run.selected else ()
    if not rows:
        yield "None were looked at: the dataset has no attributes, or another head was exported than the run selected."
        return
    named = [(row.attribute, row.value, row.roc_auc, row.reason) for row in rows]
    yield from _table(("attribute", "value", "ROC AUC (95% interval)", "note"), named)


def _cautions(run: Run, evaluation: Evaluation) -> Iterator[str]:
    yield f"- {_leakage(run)}"
    found: list[Caution] = [*grave_warnings(run, evaluation), *warnings_of(run, evaluation)]
    # Those of leakage quote paths and patients.
    yield from (
        f"- **{_text(one.title)}**: {_text(one.text)}" for one in found if one.section not in {"leakage", "provenance"}
    )
    if run.config.embeddings.weights.startswith("random:"):
        yield f"- **Untrained backbone** ({run.config.embeddings.weights}): all figures are a floor, not a result."


def _leakage(run: Run) -> str:
    if run.leakage is None:
        return "**Leakage** was not looked for."
    found = run.leakage
    what = [
        several(found.n_patients, "patient"),
        several(found.n_contents, "identical image"),
        several(found.n_near_duplicates, "pair") + " of nearly the same images",
    ]
    near = f" (near-duplicates were not looked for: {found.not_compared})" if found.not_compared else ""
    return f"**Leakage** between splits: {', '.join(what)}{near}."


def _limits(run: Run, head: SavedHead) -> Iterator[str]:
    yield "- It gives a probability for any image, also one unlike its training images; `hoarfrost predict` warns of those."
    yield "- Probabilities are calibrated to the validation split's mix of classes; where another share is ill, they are not."
    if head.header.fingerprint.precision.partition(":")[0] != "float32":
        yield "- The head was trained on embeddings of another precision than this file computes in."
    if run.config.dataset.no_test_split:
        yield f"- {run.config.dataset.no_test_split}"
    yield "- Scores are of one dataset; other hospitals, devices and years are another matter."


# -- Markdown -----------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, header))} |"
    yield f"|{'---|' * len(header)}"
    yield from (f"| {' | '.join(map(_text, row))} |" for row in rows)


def _text(text: str) -> str:
    """Keep a label from being read as Markdown or HTML."""
    plain = " ".join(text.split())
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("*", "\\*")):
        plain = plain.replace(character, instead)
    return plain


def _code(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
