"""Records to JSON and back. A record's field may change its name or its type; its key in JSON stays."""

from typing import Any, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from hoarfrost.evaluation import AtPrevalence, Comparison, Estimate, Scores, Share, Subgroup
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
    Share,
    make_dict_unstructure_fn(
        Share, _CONVERTER, _cattrs_omit_if_default=True, method=_always, n=_always, n_hits=_always
    ),
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
    why = next((one.why_none for one in triples.values() if one is not None and one.why_none), "")
    return {"prevalence": record.prevalence, **lists} | ({"why_no_interval": why} if why else {})


def _predictive_values_from_json(values: Any, _: Any) -> AtPrevalence:
    def of(triple: Any) -> Estimate | None:
        method = values.get("why_no_interval", "") if triple and triple[1] is None else ""
        return None if triple is None else Estimate(triple[0], triple[1], triple[2], method or BAYES)

    return AtPrevalence(values["prevalence"], of(values["ppv"]), of(values["npv"]))


_CONVERTER.register_unstructure_hook(AtPrevalence, _predictive_values_to_json)
_CONVERTER.register_structure_hook(AtPrevalence, _predictive_values_from_json)


# -- operating points: intervals over patients are also in `by_patient`, where earlier versions had nothing else ------------

_SHARES = ("sensitivity", "specificity", "ppv", "npv")
_structure_point = make_dict_structure_fn(FixedPoint, _CONVERTER)
_unstructure_point = make_dict_unstructure_fn(FixedPoint, _CONVERTER)


def _point_to_json(fixed: FixedPoint) -> dict[str, Any]:
    shares: dict[str, Share] = {} if fixed.result is None else {one: getattr(fixed.result, one) for one in _SHARES}
    drawn = {name: None if one.interval is None else list(one.interval) for name, one in shares.items()}
    return {**_unstructure_point(fixed), "by_patient": drawn if any(map(_is_over_patients, shares.values())) else None}


def _is_over_patients(share: Share) -> bool:
    return share.method == BOOTSTRAP or (share.n_patients is not None and share.n_patients < share.n)


def _current_point(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of an operating point as it is written now: the intervals in `result` are those that are printed.

    Where patients have several images, earlier versions wrote Wilson's there, as if images were independent.
    """
    result, drawn = values["result"], values.get("by_patient")
    if result is None or drawn is None or any("method" in result[name] for name in _SHARES):
        return values

    def over(share: Share, ends: list[float] | None) -> Share:
        if ends is None:
            return over_patients(share, None)
        # Of a share of 0 or 1, earlier versions wrote a single point.
        return over_patients(share, (0.0, 0.0) if share.n_hits in {0, share.n} else (ends[0], ends[1]))

    shares = {name: to_json(over(from_json(result[name], Share), drawn[name])) for name in _SHARES}
    return {**values, "result": {**result, **shares}}


_CONVERTER.register_structure_hook(FixedPoint, lambda values, _: _structure_point(_current_point(values), FixedPoint))
_CONVERTER.register_unstructure_hook(FixedPoint, _point_to_json)
