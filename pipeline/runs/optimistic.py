"""What the scored images also selected: its figures have no interval and no p value, and say so. The rule for all outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

from hoarfrost.evaluation import Calibration, CalibrationLine, Comparison, DecisionCurve, Estimate, Scores
from hoarfrost.evaluation.calibration_curve import CalibrationCurve
from hoarfrost.evaluation.estimates import OPTIMISTIC
from hoarfrost.evaluation.subgroup_differences import Heterogeneity
from hoarfrost.runs.records import HeadResult, ReferenceResult

T = TypeVar("T")


def optimistic(record: T) -> T:
    """Return a record, with all records that it is made of, without intervals and p values, and the reason in their place."""
    return cast("T", _marked(record))


def _marked(found: Any) -> Any:
    match found:
        case Scores():
            return found.optimistic()
        case Estimate():
            has_ends = found.low is not None or found.high is not None
            return found.without_interval(OPTIMISTIC) if has_ends or found.why_none else found
        case CalibrationLine():
            return replace(found, slope_interval=None, intercept_interval=None, why_no_interval=OPTIMISTIC)
        case DecisionCurve():
            return replace(found, low=(), high=(), method=OPTIMISTIC)
        case Heterogeneity():
            return replace(found, f=None, p=None, p_holm=None, reason=OPTIMISTIC)
    if isinstance(found, tuple):
        return tuple(map(_marked, found))
    if not is_dataclass(found) or isinstance(found, type):
        return found
    parts = {field.name: _marked(getattr(found, field.name)) for field in fields(found)}
    match found:
        case Calibration():
            parts |= {"error_interval": None, "error_method": OPTIMISTIC}
        case CalibrationCurve():
            parts |= {"low": (), "high": ()}
        case Comparison():
            parts |= {"z": None, "p": None, "p_holm": None, "reason": OPTIMISTIC}
    return replace(found, **parts)


def heads_marked(heads: Sequence[HeadResult], selected: str) -> tuple[HeadResult, ...]:
    """Return the heads with optimistic scores where the validated images chose: the head, its members, or their settings."""
    shares = next((head.shares for head in heads if head.name == selected), {})
    chosen = {selected, *(name for name, share in shares.items() if share > 0)}
    return tuple(
        replace(head, val=head.val.optimistic()) if head.name in chosen or head.trained_as else head for head in heads
    )


def references_marked(references: Sequence[ReferenceResult]) -> tuple[ReferenceResult, ...]:
    """Return the references with optimistic scores where the validated images chose their settings."""
    return tuple(replace(one, val=one.val.optimistic()) if one.setting else one for one in references)


def metrics_marked(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of `metrics.json` with all of this, which earlier versions did not do."""
    marked = dict(found)
    if found.get("external") is not None:  # a cohort, which selected nothing
        return marked
    marked["heads"] = heads_marked(found["heads"], found["selected"])
    if "references" in found:
        marked["references"] = references_marked(found["references"])
    for name, split in (("assessment", "split"), ("views", "basis")):
        if found.get(name) is not None and getattr(found[name], split) == "val":
            marked[name] = optimistic(found[name])
    return marked
