"""Head specifications: read, and crossed with grids. The kinds of head are in kinds.py."""

import math
from collections.abc import Sequence
from dataclasses import Field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import KINDS, HeadSpec, Value

if TYPE_CHECKING:
    from torch import nn

DEFAULT_HEADS = ("logistic", "mlp:256", "quadratic")
MAX_VARIANTS = 10_000


def parse_head(text: str) -> HeadSpec:
    """Read a head's specification.

    Raises
    ------
    TrainingError
        If it does not follow the grammar, or a value is out of range.
    """
    shape, *options = text.strip().split(",")
    spec = _parse_shape(shape.strip(), text)
    known = {**_all_options(), **spec.options()}
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key not in known or not equals:
            raise TrainingError(f"--head {text}: {option.strip()!r} is not an option. Expected {_grammar()}.")
        if key in values:
            raise TrainingError(f"--head {text}: {key} appears twice. Use each option once.")
        values[key] = _parse_value(known[key], value, f"--head {text}")
    for key in values.keys() - spec.options():
        if values.pop(key):  # dropout=0 asks for nothing
            raise TrainingError(f"--head {text}: {spec.UNAVAILABLE.get(key, f'{spec.KIND} has no {key}. Omit it.')}")
    return replace(spec, **values)


def _grammar() -> str:
    kinds = ", ".join(kind.GRAMMAR for kind in KINDS.values())
    return f"{kinds}, then options as in mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2"


def _all_options() -> dict[str, "Field[Any]"]:
    """Return the options of all kinds by name."""
    return {name: option for kind in KINDS.values() for name, option in kind.options().items()}


def _parse_shape(shape: str, text: str) -> HeadSpec:
    word, colon, size = shape.partition(":")
    found = KINDS[word].from_size(colon + size, text) if word in KINDS else None
    if found is None:
        raise TrainingError(f"--head {text}: not a head specification. Expected {_grammar()}.")
    return found


def _parse_value(option: "Field[Any]", value: str, where: str) -> Value:
    kind, words = option.metadata["kind"], option.metadata["words"]
    if value == "auto" and option.default is None:
        return None
    if kind is str:
        if not option.metadata["is_allowed"](value):
            raise TrainingError(f"{where}: {option.name} must be {words}, not {value}.")
        return value
    try:
        number = float(value)
    except ValueError as error:
        raise TrainingError(f"{where}: {option.name}={value} is not a number.") from error
    is_whole = kind is not int or number.is_integer()
    if not (math.isfinite(number) and is_whole and option.metadata["is_allowed"](number)):
        raise TrainingError(f"{where}: {option.name} must be {words}, not {value}.")
    return int(number) if kind is int else abs(number)  # -0 is 0


def cross_heads(specs: Sequence[HeadSpec], grids: Sequence[str]) -> list[HeadSpec]:
    """Cross heads with grids such as "lr=1e-4,1e-3": each head with each combination of their values.

    Raises
    ------
    TrainingError
        If a grid does not have this form, names no hyperparameter, or names the same one as another grid.
    """
    values: dict[str, list[Any]] = {}
    known = dict(sorted(_all_options().items()))
    for grid in grids:
        key, equals, listed = (part.strip() for part in grid.partition("="))
        if key not in known or not equals:
            raise TrainingError(f"--grid {grid}: expected one of {', '.join(known)}, as in lr=1e-4,1e-3.")
        if key in values:
            raise TrainingError(f"--grid {grid}: {key} has another grid already. List all its values in one grid.")
        values[key] = [_parse_value(known[key], value.strip(), f"--grid {key}") for value in listed.split(",")]
    found: dict[HeadSpec, None] = {}  # counted while they are made: the product of long lists would fill the memory
    for spec in specs:
        for combination in product(*values.values()):
            # An option that a kind does not have changes nothing: equal heads are kept once.
            chosen = {key: value for key, value in zip(values, combination, strict=True) if key in spec.options()}
            found[replace(spec, **chosen)] = None
            if len(found) > MAX_VARIANTS:
                raise TrainingError(f"--grid: more than {MAX_VARIANTS:,} variants. Use fewer values.")
    return list(found)


def parse_heads(texts: Sequence[str]) -> list[HeadSpec]:
    """Read several specifications, or the defaults if there are none. The same head twice is an error."""
    specs = [parse_head(text) for text in texts or DEFAULT_HEADS]
    for i, spec in enumerate(specs):
        if spec in specs[:i]:
            raise TrainingError(f"--head {spec.name} appears twice. Use each head once.")
    return specs


def count_parameters(module: "nn.Module") -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
