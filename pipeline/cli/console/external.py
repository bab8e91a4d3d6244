"""The result of `evaluate` as text: what differs, what overlaps, the drop."""

from typing import TYPE_CHECKING

from hoarfrost.cli.console.lines import CORRECTED, count, p_text, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hoarfrost.evaluation import Estimate
    from hoarfrost.evaluation.updating import UpdatedScores, Updating
    from hoarfrost.runs import Drop, External, Run

TITLES = {"roc_auc": "ROC AUC"}
ALL = "all"
SHOWN_SITES = 20
SHOWN_LABELS = 3


def evaluate_text(run: "Run", *, is_aggregate: bool = False) -> str:
    """Describe an evaluation: first what differs from the training images, then the figures."""
    found, dataset = run.external, run.config.dataset
    assert found is not None
    sample = run.config.sample
    samples = f"{count(dataset.n_images, sample)}{_of_patients(dataset.n_patients)}"
    if "val" in dataset.n_split:
        size = next(one for one in run.split_sizes() if one.split == "test")
        samples += f", of which {count(size.n_images, sample)}{_of_patients(size.n_patients)} are scored"
    lines = [f"{dataset.name}: {samples}; {found.model}"]
    lines += [*_look_lines(found), *_overlap_lines(found)]
    lines += _drop_lines(found) if found.drops else _score_lines(run)
    lines += [text for text in (found.internal, found.frozen, *found.notes) if text]
    lines += [line for one in found.updates[:SHOWN_LABELS] for line in _update_lines(one, sample)]
    if len(found.updates) > SHOWN_LABELS:
        lines.append(
            f"updates of {len(found.updates) - SHOWN_LABELS} more labels are in the report and in metrics.json"
        )
    what = "aggregate, without a row of a patient:" if is_aggregate else "evaluation"
    return "\n".join([*lines, f"{what} {run.directory}"])


def _of_patients(number: int | None) -> str:
    return "" if number is None else f" of {count(number, 'patient')}"


def _look_lines(found: "External") -> "Iterator[str]":
    differ = [one for one in found.differences if one.differs]
    if differ:
        yield "differs from the training images:"
        yield from table(
            [(f"  {one.what}", f"{one.training or 'not known'} there,", f"{one.cohort} here") for one in differ]
        )
    if found.alike:
        yield f"no clear difference in: {', '.join(found.alike)}"
    if found.unknown:
        yield f"not known of the training images: {', '.join(found.unknown)}"


def _overlap_lines(found: "External") -> "Iterator[str]":
    checked = [one for one in found.overlap if one.n is not None]
    if checked:
        counts = ", ".join(f"{one.n or 'no'} {one.what}" for one in checked)
        yield f"in the training images: {counts}{' (--allow-leakage)' if found.allowed else ''}"
    yield from (f"{one.what}: {one.text}" for one in found.overlap if one.n is None)


def _drop_lines(found: "External") -> "Iterator[str]":
    yield from table([("", "internal", "this cohort", "drop"), *(_row(one) for one in found.drops if one.site == ALL)])
    sites = [one for one in found.drops if one.site != ALL and one.metric == "roc_auc"]
    if sites:
        head = (f"{found.site_column}, ROC AUC", "", "this site", "drop")
        rows = [(one.site, "", _text(one.external), one.reason or _text(one.drop)) for one in sites[:SHOWN_SITES]]
        yield from table([head, *rows])
        if len(sites) > SHOWN_SITES:
            yield f"{len(sites) - SHOWN_SITES} more are in the report and in metrics.json"


def _row(one: "Drop") -> tuple[str, str, str, str]:
    return TITLES.get(one.metric, one.metric), _text(one.internal), _text(one.external), _text(one.drop)


def _score_lines(run: "Run") -> "Iterator[str]":
    """Yield the ROC AUC of each model, and sensitivity and specificity of the first."""
    compared = {one.name: one for one in run.comparisons}
    for head in run.heads:
        assert head.test is not None
        other = compared.get(head.name)
        difference = "" if other is None else f"; difference {_text(other.difference)}{p_text(other.p_holm)}"
        yield f"{head.name}: ROC AUC {_text(head.test.auc)}{difference}"
    if any(one.p_holm is not None for one in run.comparisons):
        yield f"Differences are from {run.selected}. {CORRECTED}"
    classes = () if run.assessment is None else run.assessment.classes
    if len(classes) == 1 and classes[0].points and (at := classes[0].points[0].result) is not None:
        first, scale = classes[0].points[0], run.scale_of(run.selected)
        decides = first.decides() if scale is None else first.decides(scale.text)
        yield (
            f"{decides} ({first.point.name}): sensitivity {_text(at.sensitivity)}, specificity {_text(at.specificity)}"
        )


def _update_lines(found: "Updating", sample: str) -> "Iterator[str]":
    """Yield what updates to this cohort would bring, cross-validated; the figures above are the frozen ones."""
    of = f" of {found.name}" if found.name else ""
    if found.reason:
        yield f"no update{of} to this cohort: {found.reason}"
        return
    head = (f"if updated{of}", "log loss", "Brier", "calibration error", "slope", "intercept", "log loss minus frozen")
    yield from table([head, *(_update_row(one) for one in found.methods if not one.reason)])
    yield from (f"{one.method}: {one.reason}" for one in found.methods if one.reason)
    frozen = "head" if sample == "image" else "probabilities"
    yield f"Updates were cross-validated in {found.n_folds} folds. All other figures are those of the frozen {frozen}."


def _update_row(one: "UpdatedScores") -> tuple[str, ...]:
    line = one.lines[0] if len(one.lines) == 1 else None
    fitted = (
        ("-", "-") if line is None else tuple("-" if x is None else f"{x:.2f}" for x in (line.slope, line.intercept))
    )
    change = "-" if one.difference is None else _text(one.difference)
    return one.method, f"{one.loss:z.3f}", f"{one.brier:z.3f}", f"{one.calibration_error:z.3f}", *fitted, change


def _text(found: "Estimate") -> str:
    if found.value is None:
        return "undefined"
    ends = f" ({found.why_none})" if found.why_none else ""
    if found.interval is not None:
        ends = f" ({found.interval[0]:z.3f} to {found.interval[1]:z.3f})"
    return f"{found.value:z.3f}{ends}"
