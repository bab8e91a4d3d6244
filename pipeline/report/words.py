"""How the report writes numbers: each kind in one way."""

from collections.abc import Sequence

from hoarfrost.evaluation import Estimate, Scores
from hoarfrost.runs.external import Scale

MINUS = "\N{MINUS SIGN}"
TO = "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}"  # a cell of a table breaks before an interval, never within
NONE = "\N{EM DASH}"


def decimal(value: float | None) -> str:
    """Write a share or an area: "0.843"; None as a dash."""
    if value is None:
        return NONE
    # z: no minus before zero. Not round(): NumPy's differs from Python's.
    return f"{value:z.3f}".replace("-", MINUS)


def threshold_text(value: float | None, scale: Scale | None) -> str:
    """Write a threshold: a probability as "0.470", a score on its own scale; None as a dash."""
    return decimal(value) if value is None or scale is None else scale.text(value).replace("-", MINUS)


def interval(ends: Sequence[float | None] | None) -> str:
    """Write an interval: "0.781 to 0.905"; a missing one as a dash."""
    if ends is None or None in ends:
        return NONE
    low, high = ends
    return f"{decimal(low)}{TO}{decimal(high)}"


def estimate_text(found: Estimate | None) -> str:
    """Write an estimate as `estimate` does, or why it has no interval; None as a dash."""
    if found is None:
        return NONE
    return estimate(found.value, found.interval, found.why_none)


def metric_text(scores: Scores, key: str) -> str:
    """Write a metric with the one interval that is printed; a dash if the run does not have it."""
    return estimate_text(scores.printed(key))


def estimate(value: float | None, ends: Sequence[float | None] | None, why_none: str = "") -> str:
    """Write a value with its interval, or why it has none: "0.843 (0.781 to 0.905)"."""
    if value is None:
        return NONE
    if ends is None or None in ends:
        return f"{decimal(value)} ({why_none})" if why_none else decimal(value)
    return f"{decimal(value)} ({interval(ends)})"


def p_text(p: float | None) -> str:
    """Write a p value: "0.031", "<0.001", or a dash."""
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int | None) -> str:
    """Write a number of things: "10,000"; None as a dash."""
    return NONE if number is None else f"{number:,}"


def percent(share: float) -> str:
    """Write a share in whole percent."""
    return f"{100 * share:.0f}%"


def rule(name: str) -> str:
    """Write the name of an operating point's rule with the sign for ">="."""
    return name.replace(">=", "\N{GREATER-THAN OR EQUAL TO}")


def several(number: int, noun: str) -> str:
    """Write a number with its noun: "1 image", "2 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def of_patients(number: int | None) -> str:
    """Write the number of patients of some images: " of 14 patients"; "" where they are unknown."""
    return "" if number is None else f" of {several(number, 'patient')}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """List the first names, and count the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def duration(seconds: float) -> str:
    """Write a time span: "3.4 s", "2 min 14 s", "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
