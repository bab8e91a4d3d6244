"""Scores in `metrics.json`, and back: the only place that derives their keys from a metric's key."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hoarfrost.evaluation import Estimate, Scores, registered
from hoarfrost.evaluation.intervals import NEWCOMBE, IntervalKind
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.operating import YOUDEN

_INTERVAL, _METHOD, _BY_CLASS = "_ci95", "_method", "_per_class"
_BESIDE = f"{_INTERVAL}_{NEWCOMBE.lower()}"
_THRESHOLDS, _RULE = "thresholds", "decided_by"
_N_KNOWN = f"n_known{_BY_CLASS}"


def scores_to_json(scores: Scores) -> dict[str, Any]:
    """Return scores as a JSON object.

    A metric's value is under its key, as in `roc_auc`; its interval in `roc_auc_ci95` and `roc_auc_ci95_method`. The latter
    alone says why there is no interval. The scores of classes or labels are in `per_class`, and again by metric, for
    metrics that may have an interval, in `roc_auc_per_class` and `roc_auc_ci95_per_class`. `thresholds` are those that
    decide accuracy and the like, and `decided_by` names their rule; without both the most probable class, or a probability
    of 0.5, does.
    """
    found: dict[str, Any] = {"n": scores.n}
    if scores.n_patients is not None:
        found["n_patients"] = scores.n_patients
    for key, estimate in scores.estimates.items():
        found[key] = estimate.value
        if estimate.interval is not None:
            found[f"{key}{_INTERVAL}"] = list(estimate.interval)
        if estimate.interval is not None or estimate.why_none:
            found[f"{key}{_INTERVAL}{_METHOD}"] = estimate.method
    if scores.thresholds:
        found[_THRESHOLDS] = list(scores.thresholds)
    if scores.rule:
        found[_RULE] = scores.rule
    return found | (_by_metric(scores.per_class) if scores.per_class else {})


def _by_metric(classes: Mapping[str, Scores]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in [metric.key for metric in registered() if metric.interval is not IntervalKind.NONE]:
        estimates = {label: one[key] for label, one in classes.items() if key in one}
        found[f"{key}{_BY_CLASS}"] = {label: one.value for label, one in estimates.items()}
        if any(one.interval is not None for one in estimates.values()):
            found[f"{key}{_INTERVAL}{_BY_CLASS}"] = {label: [one.low, one.high] for label, one in estimates.items()}
        if any(one.interval is not None or one.why_none for one in estimates.values()):
            found[_N_KNOWN] = {label: one.n for label, one in estimates.items()}
    return {**found, "per_class": {label: scores_to_json(one) for label, one in classes.items()}}


def scores_from_json(values: Mapping[str, Any], n_known: int | None = None) -> Scores:
    """Read scores; keys of unregistered metrics are ignored.

    Parameters
    ----------
    values : mapping
    n_known : int, optional
        Samples with a known label; `n` by default.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If the object is not what scores were written as.
    """
    n, n_patients = int(values["n"]), values.get("n_patients")
    estimates = {}
    for key in [metric.key for metric in registered() if metric.key in values]:
        low, high = values.get(f"{key}{_INTERVAL}", (None, None))
        method = values.get(f"{key}{_INTERVAL}{_METHOD}", "")
        estimates[key] = Estimate(values[key], low, high, method, n if n_known is None else n_known, n_patients)
        if f"{key}{_BESIDE}" in values:  # earlier versions wrote two intervals; this is the one that they printed
            low, high = values[f"{key}{_BESIDE}"]
            estimates[key] = replace(estimates[key], low=low, high=high, method=NEWCOMBE)
    thresholds = tuple(values.get(_THRESHOLDS, ()))
    rule = values.get(_RULE, YOUDEN if thresholds else "")
    return Scores(n, n_patients, estimates, _per_class(values), thresholds, rule)


def _per_class(values: Mapping[str, Any]) -> dict[str, Scores]:
    """Read the scores of classes or labels; runs of earlier versions have areas and intervals by metric alone."""
    areas, intervals = (values.get(f"{ROC_AUC}{part}{_BY_CLASS}", {}) for part in ("", _INTERVAL))
    found, n_known = values.get("per_class", {}), values.get(_N_KNOWN, {})
    read = {}
    for label in found or areas:
        one = {"n": values["n"], ROC_AUC: areas.get(label), **found.get(label, {})}
        if label in intervals:
            method = f"{ROC_AUC}{_INTERVAL}{_METHOD}"
            one = {f"{ROC_AUC}{_INTERVAL}": intervals[label], method: values.get(method, "")} | one
        read[label] = scores_from_json(one, n_known.get(label, values["n"]))
    return read
