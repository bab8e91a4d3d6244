"""The first screen: the answer, and what must be known before believing it."""

from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.evaluation import FEW, Scores, Share, ShownIn, metrics_of
from hoarfrost.evaluation.metrics import ROC_AUC, Metric
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.words import decimal, estimate_text, interval, listed, several
from hoarfrost.runs import DatasetFacts, Run, leakage_warnings

MAX_CLASSES_IN_TITLE = 5


@dataclass(frozen=True)
class Caution:
    """What must be known: a few words, the sentence with its figures, and the section that shows more."""

    title: str
    text: str
    section: str


@dataclass(frozen=True)
class Tile:
    """One figure of the answer: what it is, the value, and notes below it."""

    name: str
    value: str
    notes: tuple[str, ...]


def task_of(classes: tuple[str, ...], dataset: DatasetFacts) -> str:
    """Say in a few words what was asked."""
    if dataset.positive is not None:
        return f"{classes[1]} against {classes[0]}"
    if len(classes) > MAX_CLASSES_IN_TITLE:
        return f"{dataset.name}: {len(classes)} {'labels' if dataset.is_multilabel else 'classes'}"
    if dataset.is_multilabel:
        return f"Which of {', '.join(classes)}"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"


def tiles(run: Run, evaluation: Evaluation) -> tuple[Tile, ...]:
    """Return the answer: the area, what the first operating point does, and all other metrics that are shown everywhere."""
    scores = evaluation.scores(run.head(run.selected))
    area, *others = (_tile(metric, scores, evaluation) for metric in metrics_of([scores], ShownIn.EVERYWHERE))
    return area, *_point_tiles(run, evaluation.split_name), *others


def _tile(metric: Metric, scores: Scores, evaluation: Evaluation) -> Tile:
    found, notes = scores[metric.key], []
    if found.interval is not None:
        method = f" ({found.method})" if found.method else ""
        notes.append(f"95% interval {interval(found.interval)}{method}")
    if metric.key == ROC_AUC:
        notes.append(f"on {evaluation.samples()}")
    if metric.key in scores.beside:
        second = scores.beside[metric.key]
        notes.append(
            f"{second.method}'s interval {interval(second.interval)}: it covers better where a class has few cases "
            "or the area is near one"
        )
    if metric.baseline:
        guess = "answer" if evaluation.is_multilabel else "class"
        notes.append(f"always the most frequent {guess}: {decimal(scores.value_or_none(metric.baseline))}")
    return Tile(f"{evaluation.split_name} {evaluation.title_of(metric)}", decimal(found.value), tuple(notes))


def _point_tiles(run: Run, split: str) -> Iterator[Tile]:
    """Give sensitivity and specificity at the first operating point, where there is one class to find."""
    if run.assessment is None or len(run.assessment.classes) != 1:
        return
    fixed = run.assessment.classes[0].points[0]
    if fixed.result is None:
        return
    rule = f"at {decimal(fixed.point.threshold)} or above: {fixed.point.name}, fixed on validation"
    for name in ("sensitivity", "specificity"):
        share: Share = getattr(fixed.result, name)
        yield Tile(
            f"{split} {name}",
            decimal(share.value),
            (f"95% interval {interval(share.interval)}, {share.n_hits:,} of {share.n:,}", rule),
        )


# -- warnings -----------------------------------------------------------------------------------------------------------


def grave_warnings(run: Run, evaluation: Evaluation) -> tuple[Caution, ...]:
    """List what makes all figures here something else than they seem: it stands above everything."""
    return tuple(_grave(run, evaluation))


def _grave(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    weights = run.config.embeddings.weights
    if weights.startswith("random:"):
        yield Caution(
            "Untrained backbone",
            f"These embeddings come from an untrained backbone ({weights}): the figures are a floor, not a result.",
            "provenance",
        )
    if evaluation.split == "val":
        yield Caution(
            "No test split",
            "The dataset has no test split: all figures here are on the validation split, which also chose the head "
            "and its best epoch. Expect less on new images.",
            "data",
        )
    if run.leakage is not None and run.leakage.allowed:
        yield Caution("Leakage", leakage_warnings(run.leakage)[0], "leakage")
    for alarm in run.head(run.selected).alarms:
        yield Caution("Selected head", f"The selected head {run.selected}: {alarm}.", "heads")


def warnings_of(run: Run, evaluation: Evaluation) -> tuple[Caution, ...]:
    """List what else must be known before believing the answer, each with its figures."""
    found = [*_of_leakage(run), *_of_cases(run, evaluation), *_of_heads(run), *_of_subgroups(run, evaluation)]
    found += [
        Caution("Possible shortcut", _sentence(one.warning), "shortcuts") for one in run.shortcuts if one.is_shortcut
    ]
    told = {warning.text for warning in (*found, *grave_warnings(run, evaluation))}
    others = [Caution("Note", text, "provenance") for text in run.config.warnings if text not in told]
    return tuple(others + found)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _of_leakage(run: Run) -> Iterator[Caution]:
    if run.leakage is None:
        return
    for text in leakage_warnings(run.leakage)[int(run.leakage.allowed) :]:
        yield Caution("Near-duplicates", text, "leakage")
    if run.leakage.not_compared:
        yield Caution("Near-duplicates", f"None were looked for: {run.leakage.not_compared}.", "leakage")


def _of_cases(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    """Name the class with fewest cases, if they are few."""
    if run.assessment is None:
        return
    rarest = min(run.assessment.classes, key=lambda one: min(one.n_positive, one.n - one.n_positive))
    n_without = rarest.n - rarest.n_positive
    if min(rarest.n_positive, n_without) >= FEW:
        return
    which = rarest.name if rarest.n_positive <= n_without else f"not {rarest.name}"
    area = evaluation.scores(run.head(run.selected)).auc
    yield Caution(
        "Few cases",
        f"Only {min(rarest.n_positive, n_without):,} of the {rarest.n:,} {evaluation.split_name} {evaluation.unit}s are "
        f"{which}: the ROC AUC may as well be {decimal(area.low)} or {decimal(area.high)}.",
        "data",
    )


def _of_heads(run: Run) -> Iterator[Caution]:
    alarmed = [head for head in run.heads if head.alarms and head.name != run.selected]
    if alarmed:
        first = alarmed[0]
        more = f" So it is with {listed([head.name for head in alarmed[1:]])}." if len(alarmed) > 1 else ""
        yield Caution("Other heads", f"{first.name} {'; '.join(first.alarms)}.{more}", "heads")


def _of_subgroups(run: Run, evaluation: Evaluation) -> Iterator[Caution]:
    """Name, for each attribute, the subgroup that lies farthest below all, if its interval does not reach them."""
    subgroups = () if run.assessment is None else run.assessment.subgroups
    overall = evaluation.scores(run.head(run.selected)).value(ROC_AUC)
    for attribute in dict.fromkeys(one.attribute for one in subgroups):
        of_attribute = [one for one in subgroups if one.attribute == attribute]
        below = [one for one in of_attribute if one.roc_auc.high is not None and one.roc_auc.high < overall]
        if below:
            worst = min(below, key=lambda one: one.roc_auc.value or 0.0)
            yield Caution(
                "Uneven subgroups",
                f"For {attribute} {worst.value} ({several(worst.n, evaluation.unit)}) the ROC AUC is "
                f"{estimate_text(worst.roc_auc)}, for all {decimal(overall)}.",
                "subgroups",
            )
