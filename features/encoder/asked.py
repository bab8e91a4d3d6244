"""What a user writes of an encoder that is not an entry: a model of timm, or a file, with options. Loads no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hoarfrost.features.encoder.registry import Network
from hoarfrost.features.errors import EncoderError

Colours = tuple[float, float, float]
TIMM, TORCH, ONNX = "timm:", "torch:", "onnx:"
GRAMMAR = (
    "NAME, timm:NAME[,size=PIXELS], torch:FILE.pt2 or onnx:FILE.onnx with any of "
    ",preprocess=FILE.onnx ,size=PIXELS ,scale=1|255 ,mean=M/M/M ,std=S/S/S ,channels=rgb|bgr ,output=NAME"
)
FAMILIES = {
    TIMM: ("size",),
    TORCH: ("size", "scale", "mean", "std", "channels"),
    ONNX: ("preprocess", "size", "scale", "mean", "std", "channels", "output"),
}


@dataclass(frozen=True)
class Asked:
    """What a user wrote of an encoder that is not an entry: "onnx:net.onnx,scale=255" in parts.

    `source` is the model's name or the file; `options` are those after it.
    """

    text: str
    family: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)

    def refused(self, reason: str) -> EncoderError:
        """Return the error for a part that is wrong."""
        return EncoderError(f"--encoder {self.text}: {reason}. Write {GRAMMAR}.")

    @property
    def size(self) -> int | None:
        """The height and width of the input, in pixels."""
        text = self.options.get("size")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and 8 <= int(text) <= 4096):
            raise self.refused(f"size={text} is not a size in pixels from 8 to 4096")
        return int(text)

    def colours(self, name: str, default: Colours) -> Colours:
        """Return the three numbers of an option such as mean=0.5/0.5/0.5; one number is for all three."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            values = tuple(float(part) for part in text.split("/"))
        except ValueError as error:
            raise self.refused(f"{name}={text} is not a list of numbers such as 0.485/0.456/0.406") from error
        values = values * 3 if len(values) == 1 else values
        if len(values) != 3 or not all(abs(value) < 1e6 for value in values):
            raise self.refused(f"{name}={text} is not three numbers, or one for all colours")
        return values[0], values[1], values[2]

    def choice(self, name: str, *choices: str) -> str:
        """Return an option that is one of some words; the first is the default."""
        found = self.options.get(name, choices[0])
        if found not in choices:
            raise self.refused(f"{name}={found} is not one of {', '.join(choices)}")
        return found


@dataclass(frozen=True)
class Found:
    """What was found of such an encoder by running it once.

    Attributes
    ----------
    name : str
        As in fingerprints: "timm:resnet50", "onnx:net.onnx".
    size, mean, std
        See `hoarfrost.features.encoder.registry.EncoderSpec`.
    network : Network
    file : str
        Where it is, if it is a file.
    """

    name: str
    size: int
    mean: Colours
    std: Colours
    network: Network
    file: str = ""


def asked_for(text: str) -> Asked | None:
    """Read what a user wrote of an encoder; None if it is the name of an entry, or of none.

    Raises
    ------
    EncoderError
        If an option is not one of its family's.
    """
    family = next((prefix for prefix in FAMILIES if text.startswith(prefix)), "")
    if not family:
        return None
    source, *parts = text.removeprefix(family).split(",")
    asked = Asked(text, family, source, dict(part.partition("=")[::2] for part in parts))
    if not source:
        raise asked.refused("the name is missing")
    if unknown := sorted(asked.options.keys() - set(FAMILIES[family])):
        raise asked.refused(f"{unknown[0]!r} is not an option of {family}, which has {', '.join(FAMILIES[family])}")
    return asked
