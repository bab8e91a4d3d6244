"""Heads: the grammar of their specifications, and the modules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from typing import TYPE_CHECKING

from hoarfrost.features.errors import TrainingError

if TYPE_CHECKING:
    from torch import nn

DEFAULT_HEADS = ("linear", "mlp:256", "mlp:256x6")
MAX_WIDTH = 65_536
MAX_DEPTH = 64
MAX_VARIANTS = 10_000
MAX_PARAMETERS = 100_000_000  # with AdamW's state 1.6 GB; more is no lightweight head
GRAMMAR = "linear, mlp:WIDTH or mlp:WIDTHxDEPTH, then options as in mlp:256x2,dropout=0.2,lr=1e-3,weight_decay=1e-2"


@dataclass(frozen=True)
class HeadSpec:
    """One variant: an architecture and its hyperparameters.

    Attributes
    ----------
    width, depth : int
        Of the hidden layers (ReLU); depth 0 is a linear head.
    dropout : float
        After each hidden layer, 0 <= dropout < 1.
    lr : float
        AdamW's learning rate, > 0.
    weight_decay : float
        AdamW's decoupled weight decay, >= 0, on weight matrices only.
    """

    width: int = 0
    depth: int = 0
    dropout: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 1.0

    @property
    def shape(self) -> str:
        """The architecture alone: "linear", "mlp:256", "mlp:256x6"."""
        return "linear" if not self.depth else f"mlp:{self.width}" + (f"x{self.depth}" if self.depth > 1 else "")

    @property
    def name(self) -> str:
        """The shortest specification that gives this head."""
        values = {key: getattr(self, key) for key in _OPTIONS if getattr(self, key) != getattr(HeadSpec, key)}
        options = [f"{key}={_shortest(value)}" for key, value in values.items()]
        return ",".join([self.shape, *options])

    @property
    def slug(self) -> str:
        """The name as a file name."""
        readable = "".join(c if c.isalnum() or c in "-+.=" else "-" for c in self.name)
        return readable if len(readable) < 100 else f"{readable[:80]}-{sha256(self.name.encode()).hexdigest()[:8]}"


_OPTIONS = ("dropout", "lr", "weight_decay")


def _shortest(value: float) -> str:
    """Write a number briefly ("1", "0.001"), but never so that it reads back as another one."""
    brief = f"{value:g}"
    return brief if float(brief) == value else repr(value)


def parse_head(text: str) -> HeadSpec:
    """Read a head's specification.

    Raises
    ------
    TrainingError
        If it is not of the grammar, or a value is out of range.
    """
    shape, *options = text.strip().split(",")
    spec = _parse_shape(shape.strip(), text)
    values: dict[str, float] = {}
    for option in options:
        key, equals, value = (part.strip() for part in option.partition("="))
        if key not in _OPTIONS or not equals:
            raise TrainingError(f"--head {text}: {option.strip()!r} is no option. Expected {GRAMMAR}.")
        if key in values:
            raise TrainingError(f"--head {text}: {key} is given twice. Give each option once.")
        values[key] = _parse_value(key, value, text)
    if values.get("dropout") and not spec.depth:
        raise TrainingError(
            f"--head {text}: a linear head has no hidden layer to drop out from. Leave dropout away, or take mlp:256."
        )
    return replace(spec, **values)  # type: ignore[arg-type]


def _parse_shape(shape: str, text: str) -> HeadSpec:
    if shape == "linear":
        return HeadSpec()
    kind, _, size = shape.partition(":")
    width, x, depth = size.partition("x")
    numbers = [width, depth] if x else [width]
    if kind != "mlp" or not all(number.isascii() and number.isdigit() for number in numbers):
        raise TrainingError(f"--head {text}: not a head. Expected {GRAMMAR}.")
    # Python refuses to read numbers of thousands of digits; nine are too many already.
    spec = HeadSpec(width=int(width[:9]), depth=int(depth[:9]) if x else 1)
    if not (1 <= spec.width <= MAX_WIDTH and 1 <= spec.depth <= MAX_DEPTH):
        raise TrainingError(f"--head {text}: width must be 1 to {MAX_WIDTH}, depth 1 to {MAX_DEPTH}.")
    if spec.width**2 * (spec.depth - 1) > MAX_PARAMETERS:
        raise TrainingError(
            f"--head {text}: {spec.depth} layers of {spec.width} are more than {MAX_PARAMETERS:,} weights. "
            "Take a smaller width or depth."
        )
    return spec


def _parse_value(key: str, value: str, text: str, *, option: str = "--head") -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise TrainingError(f"{option} {text}: {key}={value} is not a number.") from error
    fits = {"dropout": 0 <= number < 1, "lr": number > 0, "weight_decay": number >= 0}[key]
    if not (fits and math.isfinite(number)):
        bounds = {"dropout": "from 0 to below 1", "lr": "above 0", "weight_decay": "0 or above"}[key]
        raise TrainingError(f"{option} {text}: {key} must be {bounds}, not {value}.")
    return abs(number)  # -0 is 0


def cross_heads(specs: "Sequence[HeadSpec]", grids: "Sequence[str]") -> list[HeadSpec]:
    """Cross heads with grids such as "lr=1e-4,1e-3": each head with each combination of their values.

    Raises
    ------
    TrainingError
        If a grid is not of this form, names no hyperparameter, or names the same as another.
    """
    values: dict[str, list[float]] = {}
    for grid in grids:
        key, equals, listed = (part.strip() for part in grid.partition("="))
        if key not in _OPTIONS or not equals:
            raise TrainingError(f"--grid {grid}: expected one of {', '.join(_OPTIONS)}, as in lr=1e-4,1e-3.")
        if key in values:
            raise TrainingError(f"--grid {grid}: {key} has a grid already. Put all its values into one.")
        values[key] = [_parse_value(key, value.strip(), key, option="--grid") for value in listed.split(",")]
    crossed = (
        # A linear head has no hidden layer to drop out from: one of it is enough.
        replace(spec, **{key: value for key, value in chosen.items() if key != "dropout" or spec.depth})  # type: ignore[arg-type]
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


def build_head(spec: HeadSpec, n_inputs: int, n_classes: int) -> "nn.Sequential":
    """Make the module: (B, n_inputs) standardised embeddings to (B, n_classes) logits."""
    from torch import nn

    layers: list[nn.Module] = []
    width = n_inputs
    for _ in range(spec.depth):
        layers += [nn.Linear(width, spec.width), nn.ReLU()]
        if spec.dropout:
            layers.append(nn.Dropout(spec.dropout))
        width = spec.width
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def count_parameters(module: "nn.Module") -> int:
    """Count trainable values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
