"""Head specifications: read, and crossed with grids. What each kind of head is stands in kinds.py."""

import math
from collections.abc import Sequence
from dataclasses import Field, replace
from itertools import product
from typing import TYPE_CHECKING

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import KINDS, HeadSpec

if TYPE_CHECKING:
    from torch import nn

DEFAULT_HEADS = ("linear", "mlp:256", "mlp:256x6")
MAX_VARIANTS = 10_000


def parse_head(text: str) -> HeadSpec:
    """Read a head's specification.

    Raises
    ------
    TrainingError
        If it is not of the grammar, or a value is out of range.
    """
    shape, *options = text.strip().split(",")
    spec = _parse_shape(shape.strip(), text)
    known = {**_all_options(), **spec.options()}
    values: dict[str, float] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key not in known or not equals:
            raise TrainingError(f"--head {text}: {option.strip()!r} is no option. Expected {_grammar()}.")
        if key in values:
            raise TrainingError(f"--head {text}: {key} is given twice. Give each option once.")
        values[key] = _parse_value(known[key], value, f"--head {text}")
    for key in values.keys() - spec.options():
        if values.pop(key) != known[key].default:
            raise TrainingError(f"--head {text}: {spec.HAS_NOT.get(key, f'{spec.KIND} has no {key}. Leave it out.')}")
    return replace(spec, **values)


def _grammar() -> str:
    kinds = ", ".join(kind.GRAMMAR for kind in KINDS.values())
    return f"{kinds}, then options as in mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2"


def _all_options() -> dict[str, "Field[float]"]:
    """Return the options of all kinds, by their names."""
    return {name: option for kind in KINDS.values() for name, option in kind.options().items()}


def _parse_shape(shape: str, text: str) -> HeadSpec:
    word, colon, size = shape.partition(":")
    found = KINDS[word].of_size(colon + size, text) if word in KINDS else None
    if found is None:
        raise TrainingError(f"--head {text}: not a head. Expected {_grammar()}.")
    return found


def _parse_value(option: "Field[float]", value: str, where: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise TrainingError(f"{where}: {option.name}={value} is not a number.") from error
    bounds = option.metadata["bounds"]
    if not (bounds.holds(number) and math.isfinite(number)):
        raise TrainingError(f"{where}: {option.name} must be {bounds.words}, not {value}.")
    return abs(number)  # -0 is 0


def cross_heads(specs: "Sequence[HeadSpec]", grids: "Sequence[str]") -> list[HeadSpec]:
    """Cross heads with grids such as "lr=1e-4,1e-3": each head with each combination of their values.

    Raises
    ------
    TrainingError
        If a grid is not of this form, names no hyperparameter, or names the same as another.
    """
    values: dict[str, list[float]] = {}
    known = dict(sorted(_all_options().items()))
    for grid in grids:
        key, equals, listed = (part.strip() for part in grid.partition("="))
        if key not in known or not equals:
            raise TrainingError(f"--grid {grid}: expected one of {', '.join(known)}, as in lr=1e-4,1e-3.")
        if key in values:
            raise TrainingError(f"--grid {grid}: {key} has a grid already. Put all its values into one.")
        values[key] = [_parse_value(known[key], value.strip(), f"--grid {key}") for value in listed.split(",")]
    crossed = (
        # A linear head has no hidden layer to drop out from: one of it is enough.
        replace(spec, **{key: value for key, value in chosen.items() if key in spec.options()})
        for spec in specs
        for chosen in (dict(zip(values, combination, strict=True)) for combination in product(*values.values()))
    )
    found: dict[HeadSpec, None] = {}
    for variant in crossed:  # counted while they are made: three long lists would fill the memory
        found[variant] = None
        if len(found) > MAX_VARIANTS:
            raise TrainingError(f"--grid: more than {MAX_VARIANTS:,} variants. Give fewer values.")
    return list(found)


def parse_heads(texts: "tuple[str, ...] | list[str]") -> list[HeadSpec]:
    """Read several specifications; the defaults where there are none; the same head twice is an error."""
    specs = [parse_head(text) for text in texts or DEFAULT_HEADS]
    for i, spec in enumerate(specs):
        if spec in specs[:i]:
            raise TrainingError(f"--head {spec.name} is given twice. Give each head once.")
    return specs


def count_parameters(module: "nn.Module") -> int:
    """Count trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
