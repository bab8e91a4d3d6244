"""Records to JSON and back. A record's field may change its name or its type; its key in JSON stays."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from hoarfrost.evaluation import AtPrevalence, Comparison, Estimate, PointResult, Scores, Share, Subgroup, wilson
from hoarfrost.evaluation.operating import BAYES
from hoarfrost.evaluation.shares import BOOTSTRAP, over_patients
from hoarfrost.runs.scores import scores_from_json, scores_to_json
from hoarfrost.runs.trust import FixedPoint

T = TypeVar("T")

# One plain error is enough to state that a file is damaged.
_CONVERTER = cattrs.Converter(detailed_validation=False)


def from_json(values: Any, kind: type[T]) -> T:
    """Return the record of a JSON object, with those inside it; keys of a later minor version are ignored.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If the object is not what the record was written as.
    """
    return _CONVERTER.structure(values, kind)


def to_json(record: Any) -> Any:
    """Return a record, or a mapping of records, as what `json` writes."""
    return _CONVERTER.unstructure(record)


# -- scores, estimates and proportions ----------------------------------------------------------------------------------

_CONVERTER.register_structure_hook(Scores, lambda values, _: scores_from_json(values))
_CONVERTER.register_unstructure_hook(Scores, scores_to_json)
_CONVERTER.register_unstructure_hook(
    Estimate, make_dict_unstructure_fn(Estimate, _CONVERTER, _cattrs_omit_if_default=True)
)
_always = override(omit_if_default=False)
_CONVERTER.register_unstructure_hook(
    Share, make_dict_unstructure_fn(Share, _CONVERTER, _cattrs_omit_if_default=True, n=_always, n_hits=_always)
)


# -- estimates whose parts are among their record's other keys ----------------------------------------------------------


def _register_flat(kind: type[Any], name: str) -> None:
    """Keep the parts of the estimate `name` beside the record's other keys: its value under its name, and low and high."""
    structure = make_dict_structure_fn(kind, _CONVERTER)

    def to_flat(record: Any) -> dict[str, Any]:
        estimate: Estimate = getattr(record, name)
        others = {key: _CONVERTER.unstructure(value) for key, value in vars(record).items() if key != name}
        parts = {name: estimate.value, "low": estimate.low, "high": estimate.high, "interval": estimate.method}
        return {"n": estimate.n, "n_patients": estimate.n_patients, **others, **parts}

    def from_flat(values: Any, _: Any) -> Any:
        parts = {"value": values[name], "low": values["low"], "high": values["high"]}
        parts |= {"method": values.get("interval", ""), "n": values.get("n", 0), "n_patients": values.get("n_patients")}
        return structure({**values, name: parts}, kind)

    _CONVERTER.register_unstructure_hook(kind, to_flat)
    _CONVERTER.register_structure_hook(kind, from_flat)


_register_flat(Comparison, "difference")
_register_flat(Subgroup, "roc_auc")


def _predictive_values_to_json(record: AtPrevalence) -> dict[str, Any]:
    triples = {name: getattr(record, name) for name in ("ppv", "npv")}
    lists = {name: None if one is None else [one.value, one.low, one.high] for name, one in triples.items()}
    return {"prevalence": record.prevalence, **lists}


def _predictive_values_from_json(values: Any, _: Any) -> AtPrevalence:
    def of(triple: Any) -> Estimate | None:
        return None if triple is None else Estimate(triple[0], triple[1], triple[2], BAYES)

    return AtPrevalence(values["prevalence"], of(values["ppv"]), of(values["npv"]))


_CONVERTER.register_unstructure_hook(AtPrevalence, _predictive_values_to_json)
_CONVERTER.register_structure_hook(AtPrevalence, _predictive_values_from_json)


# -- operating points: Wilson's intervals in `result`, those over patients in `by_patient` ---------------------------------

_SHARES = ("sensitivity", "specificity", "ppv", "npv")
_structure_point = make_dict_structure_fn(FixedPoint, _CONVERTER)
_unstructure_point = make_dict_unstructure_fn(FixedPoint, _CONVERTER)


def _changed(fixed: FixedPoint, result: PointResult, change: Callable[[str, Share], Share]) -> FixedPoint:
    """Return an operating point with each of its proportions changed."""
    sensitivity, specificity, ppv, npv = (change(name, getattr(result, name)) for name in _SHARES)
    return replace(fixed, result=replace(result, sensitivity=sensitivity, specificity=specificity, ppv=ppv, npv=npv))


def _point_to_json(fixed: FixedPoint) -> dict[str, Any]:
    shares: dict[str, Share] = {} if fixed.result is None else {one: getattr(fixed.result, one) for one in _SHARES}
    if fixed.result is None or not any(_is_over_patients(one) for one in shares.values()):
        return {**_unstructure_point(fixed), "by_patient": None}
    plain = _changed(fixed, fixed.result, lambda _, one: replace(wilson(one.n_hits, one.n), n_patients=one.n_patients))
    return {**_unstructure_point(plain), "by_patient": {name: _drawn(one) for name, one in shares.items()}}


def _is_over_patients(share: Share) -> bool:
    return share.method == BOOTSTRAP or (share.n_patients is not None and share.n_patients < share.n)


def _drawn(share: Share) -> list[float | None] | None:
    """Return the interval over patients."""
    return None if share.interval is None else list(share.interval)


def _point_from_json(values: Any, _: Any) -> FixedPoint:
    fixed, drawn = _structure_point(values, FixedPoint), values.get("by_patient")
    if fixed.result is None or drawn is None:
        return fixed

    def over(name: str, share: Share) -> Share:
        if drawn[name] is None:
            return over_patients(share, None)
        # Of a share of 0 or 1, earlier versions wrote a single point.
        low, high = (0.0, 0.0) if share.n_hits in {0, share.n} else drawn[name]
        return over_patients(share, (low, high))

    return _changed(fixed, fixed.result, over)


_CONVERTER.register_unstructure_hook(FixedPoint, _point_to_json)
_CONVERTER.register_structure_hook(FixedPoint, _point_from_json)
