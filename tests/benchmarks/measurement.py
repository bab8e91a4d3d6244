"""One line of the benchmark's table."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """What was measured, the figure as text, what an issue demanded, and the raw numbers."""

    what: str
    measured: str
    demanded: str
    figures: dict[str, float] = field(default_factory=dict)
