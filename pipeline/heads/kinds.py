"""The kinds of head. One class declares all of a kind: its grammar, options, module, and how many are trained at once.

To add a kind, write a subclass of `HeadSpec` and list it in `KINDS`. Nothing else has to change.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hoarfrost.features.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hoarfrost.heads.layers import Basis

TRANSFORMS = ("none", "sqrt", "unit")
MAX_WIDTH = 65_536
MAX_DEPTH = 64
MAX_PARAMETERS = 100_000_000  # with AdamW's state 1.6 GB; more is no lightweight head

StackedLayer = Callable[["nn.Module", "Sequence[Tensor]", "Tensor"], "Tensor"]
"""One layer of M heads at once: from the first head's layer, its parameters (M, ...) and inputs (M, B, in) to (M, B, out)."""


def apply_directly(layer: "nn.Module", _: "Sequence[Tensor]", y: "Tensor") -> "Tensor":
    """Apply a layer without parameters to the inputs of all heads: an activation, or another function of each row."""
    found: Tensor = layer(y)
    return found


Value = float | int | str | None
"""The value of an option; None is written "auto"."""


def option(default: Value, words: str, is_allowed: Callable[[Any], bool], *, kind: type = float) -> Any:
    """Declare an option of a head, a dataclass field with a default; `words` for its range follow "must be".

    `kind` is float, int or str. An option whose default is None may be "auto".
    """
    return field(default=default, metadata={"words": words, "is_allowed": is_allowed, "kind": kind})


def choice(default: str, allowed: Sequence[str]) -> Any:
    """Declare an option that is one of several words."""
    words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
    return option(default, words, lambda value: value in allowed, kind=str)


def _all_parts(is_allowed: Callable[[str], bool]) -> Callable[[str], bool]:
    """Return a test of a text whose parts are joined by "+"."""
    return lambda text: all(is_allowed(part) for part in text.split("+"))


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One variant: an architecture and its hyperparameters. Each kind of head is a subclass.

    Fields made by `option` follow the commas of a specification, as in `dropout=0.2`. Other fields are the size, which a
    kind reads and writes itself.

    Attributes
    ----------
    transform : str
        What is done to embeddings before they are standardised: "none", "sqrt" (the square root of each feature's
        size, with its sign), or "unit" (each embedding scaled to length one).
    members : int
        How many trainings of this variant predict together, by the mean of their probabilities: at least one in each
        fold, and the others with further seeds.
    lr : float
        AdamW's learning rate, > 0.
    weight_decay : float
        AdamW's decoupled weight decay, >= 0, on weight matrices only.
    views : str or None
        Names of the views that it looks at, joined by "+"; None for all that the task has.
    layers : str or None
        Numbers of the encoder's layers that it uses, joined by "+"; None for all that the cache has.
    """

    KIND: ClassVar[str]
    """The word that a specification of this kind begins with."""
    GRAMMAR: ClassVar[str]
    """How the part before the first comma is written, for messages."""
    UNAVAILABLE: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Options of other kinds, and why this kind does not have them, for messages."""
    WITHOUT: ClassVar[frozenset[str]] = frozenset()
    """Fields of `HeadSpec` that mean nothing to this kind, and are no options of it."""
    AVERAGES_VIEWS: ClassVar[bool] = False
    """Whether it takes the mean embedding of an image's views; otherwise each view is a training example of its own, and
    probabilities are averaged."""

    transform: str = choice("sqrt", TRANSFORMS)
    members: int = option(1, "a whole number from 1 to 1000", lambda value: 1 <= value <= 1000, kind=int)
    lr: float = option(1e-3, "above 0", lambda value: value > 0)
    weight_decay: float = option(1.0, "0 or above", lambda value: value >= 0)
    views: str | None = option(None, "auto, or names of views joined by +", _all_parts(bool), kind=str)
    layers: str | None = option(None, "auto, or numbers of layers joined by +", _all_parts(str.isdecimal), kind=str)

    @classmethod
    def from_size(cls, size: str, text: str) -> Self | None:  # noqa: ARG003 - for kinds that have a size
        """Return a head of this kind with default options, or None if the size does not follow the grammar.

        Parameters
        ----------
        size : str
            The part between the kind's word and the first comma: "", or ":256x6".
        text : str
            The whole specification, for messages.

        Raises
        ------
        TrainingError
            If the size is out of range.
        """
        return None if size else cls()

    @property
    def shape(self) -> str:
        """The architecture alone, as "mlp:256x6"."""
        return self.KIND

    @property
    def stack_key(self) -> Hashable:
        """Equal for heads that can be trained in one stack: their modules differ only in dropout and weights."""
        return self.shape, self.transform, self.views, self.layers

    @property
    def view_names(self) -> tuple[str, ...]:
        """The names of its views; empty for all that there are."""
        return () if self.views is None else tuple(self.views.split("+"))

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The numbers of its layers; empty for all that there are."""
        return () if self.layers is None else tuple(int(part) for part in self.layers.split("+"))

    def candidates(self) -> "tuple[Self, ...]":
        """Return the heads that are trained for this specification; the best by out-of-fold loss represents it."""
        return (self,)

    def build(self, n_inputs: int, n_classes: int) -> "nn.Sequential":
        """Return the module, from (B, n_inputs) standardised embeddings to (B, n_classes) logits.

        Its layers must be `nn.Linear`, `nn.Dropout`, or in `stacked_layers`; training refuses others.
        """
        raise NotImplementedError

    @classmethod
    def stacked_layers(cls) -> "Mapping[type[nn.Module], StackedLayer]":
        """Return how each type of layer runs for many heads at once; `nn.Linear` and `nn.Dropout` need no entry."""
        return {}

    @classmethod
    def options(cls) -> dict[str, "Field[Any]"]:
        """Return the declared options by name, in the order in which they are written."""
        declared = sorted(fields(cls), key=lambda one: one.name)
        return {one.name: one for one in declared if "is_allowed" in one.metadata and one.name not in cls.WITHOUT}

    def values(self) -> dict[str, Any]:
        """Return the value of each option."""
        return {name: getattr(self, name) for name in self.options()}

    @property
    def name(self) -> str:
        """The shortest specification of this head."""
        defaults = {name: one.default for name, one in self.options().items()}
        changed = [f"{name}={_shortest(value)}" for name, value in self.values().items() if value != defaults[name]]
        return ",".join([self.shape, *changed])

    @property
    def full_name(self) -> str:
        """The specification with all options that have a value, which stays the same head when defaults change."""
        values = {name: value for name, value in self.values().items() if value is not None}
        return ",".join([self.shape, *(f"{name}={_shortest(value)}" for name, value in values.items())])

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return slug_of(self.name)


def slug_of(name: str) -> str:
    """Return a head's name as a file name."""
    readable = "".join(c if c.isalnum() or c in "-+.=" else "-" for c in name)
    return readable if len(readable) < 100 else f"{readable[:80]}-{sha256(name.encode()).hexdigest()[:8]}"


def _shortest(value: Value) -> str:
    """Return the shortest text ("1", "0.001", "sqrt") that reads back as the same value."""
    if not isinstance(value, float):
        return "auto" if value is None else str(value)
    brief = f"{value:g}"
    return brief if float(brief) == value else repr(value)


@dataclass(frozen=True, kw_only=True)
class Linear(HeadSpec):
    """One linear layer."""

    KIND: ClassVar[str] = "linear"
    GRAMMAR: ClassVar[str] = "linear"
    UNAVAILABLE: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"dropout": "a linear head has no hidden layer, so dropout does not apply. Omit dropout, or use mlp:256."}
    )

    def build(self, n_inputs: int, n_classes: int) -> "nn.Sequential":
        """Return the module, see `HeadSpec.build`."""
        from torch import nn

        return nn.Sequential(nn.Linear(n_inputs, n_classes))


@dataclass(frozen=True, kw_only=True)
class Mlp(HeadSpec):
    """Hidden layers of one width with ReLU.

    Attributes
    ----------
    width, depth : int
        Of the hidden layers.
    dropout : float
        Rate after each hidden layer, 0 <= dropout < 1.
    """

    KIND: ClassVar[str] = "mlp"
    GRAMMAR: ClassVar[str] = "mlp:WIDTH or mlp:WIDTHxDEPTH"

    width: int
    depth: int = 1
    dropout: float = option(0.3, "from 0 to below 1", lambda value: 0 <= value < 1)
    members: int = option(20, "a whole number from 1 to 1000", lambda value: 1 <= value <= 1000, kind=int)
    weight_decay: float = option(0.1, "0 or above", lambda value: value >= 0)

    @classmethod
    def from_size(cls, size: str, text: str) -> Self | None:
        """Read ":WIDTH" or ":WIDTHxDEPTH", see `HeadSpec.from_size`."""
        width, x, depth = size.removeprefix(":").partition("x")
        numbers = [width, depth] if x else [width]
        if not all(number.isascii() and number.isdigit() for number in numbers):
            return None
        # Python refuses to read numbers of thousands of digits; nine are too many already.
        found = cls(width=int(width[:9]), depth=int(depth[:9]) if x else 1)
        if not (1 <= found.width <= MAX_WIDTH and 1 <= found.depth <= MAX_DEPTH):
            raise TrainingError(f"--head {text}: width must be 1 to {MAX_WIDTH}, depth 1 to {MAX_DEPTH}.")
        if found.width**2 * (found.depth - 1) > MAX_PARAMETERS:
            raise TrainingError(
                f"--head {text}: {found.depth} layers of {found.width} are more than {MAX_PARAMETERS:,} weights. "
                "Use a smaller width or depth."
            )
        return found

    @property
    def shape(self) -> str:
        """The architecture alone: "mlp:256", "mlp:256x6"."""
        return f"{self.KIND}:{self.width}" + (f"x{self.depth}" if self.depth > 1 else "")

    def build(self, n_inputs: int, n_classes: int) -> "nn.Sequential":
        """Return the module, see `HeadSpec.build`."""
        from torch import nn

        layers: list[nn.Module] = []
        for i in range(self.depth):
            layers += [nn.Linear(self.width if i else n_inputs, self.width), self.activation()]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
        return nn.Sequential(*layers, nn.Linear(self.width, n_classes))

    @staticmethod
    def activation() -> "nn.Module":
        """Return the layer that follows each hidden layer."""
        from torch import nn

        return nn.ReLU()

    @classmethod
    def stacked_layers(cls) -> "Mapping[type[nn.Module], StackedLayer]":
        """Return how its layers run for many heads at once, see `HeadSpec.stacked_layers`."""
        return {type(cls.activation()): apply_directly}


@dataclass(frozen=True, kw_only=True)
class Penalised(HeadSpec):
    """A head that is linear in some features: its loss plus an L2 penalty has one minimum, which is found to convergence.

    Attributes
    ----------
    C : float or None
        Inverse of the penalty, as in scikit-learn: the sum of the images' losses is multiplied by it, and half of the
        squared weights is added. None tries each of `PATH`.
    """

    WITHOUT: ClassVar[frozenset[str]] = frozenset({"lr", "weight_decay", "members"})
    UNAVAILABLE: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            name: f"it is trained to convergence, so {name} does not apply. Omit {name}, or use C."
            for name in ("lr", "weight_decay", "members", "dropout")
        }
    )
    PATH: ClassVar[tuple[float, ...]] = ()
    """The values of C that are tried."""
    # Measured on BUSI: with the mean embedding of three views the loss is lower than with three examples of each image.
    AVERAGES_VIEWS: ClassVar[bool] = True

    C: float | None = option(None, "auto or above 0", lambda value: value > 0)

    def candidates(self) -> tuple[Self, ...]:
        """Return the head with each C of the path, or with its own."""
        return (self,) if self.C is not None else tuple(replace(self, C=value) for value in self.PATH)

    @property
    def stack_key(self) -> Hashable:
        """Equal for heads that are linear in the same features."""
        return replace(self, C=None)

    def basis(self, z: "Tensor") -> "Basis":
        """Return the features that the head is linear in, from standardised training embeddings (n, D)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Logistic(Penalised):
    """Logistic regression with an L2 penalty."""

    KIND: ClassVar[str] = "logistic"
    GRAMMAR: ClassVar[str] = "logistic"
    PATH: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0)

    def build(self, n_inputs: int, n_classes: int) -> "nn.Sequential":
        """Return the module, see `HeadSpec.build`."""
        from torch import nn

        return nn.Sequential(nn.Linear(n_inputs, n_classes))

    def basis(self, z: "Tensor") -> "Basis":
        """Return the embeddings themselves."""
        from hoarfrost.heads.layers import linear_basis

        return linear_basis(z)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Penalised):
    """Logistic regression with the kernel (1/2 + cosine)^2: quadratic in embeddings of length one.

    It contains the products of all pairs of features, and no training image: a head file stays free of patient data.
    """

    KIND: ClassVar[str] = "quadratic"
    GRAMMAR: ClassVar[str] = "quadratic"
    PATH: ClassVar[tuple[float, ...]] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def build(self, n_inputs: int, n_classes: int) -> "nn.Sequential":
        """Return the module, see `HeadSpec.build`."""
        from torch import nn

        from hoarfrost.heads.layers import QuadraticForm

        return nn.Sequential(QuadraticForm(n_inputs, n_classes))

    def basis(self, z: "Tensor") -> "Basis":
        """Return the kernel's features on the training images, see `hoarfrost.heads.layers.quadratic_basis`."""
        from hoarfrost.heads.layers import quadratic_basis

        return quadratic_basis(z)


KINDS: dict[str, type[HeadSpec]] = {kind.KIND: kind for kind in (Logistic, Linear, Mlp, Quadratic)}
"""All kinds, by the first word of their specifications."""
