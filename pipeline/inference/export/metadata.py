"""The metadata of an exported model: how to prepare its input, and what its outputs mean."""

import json
from typing import Any

from hoarfrost.evaluation import apply_temperature
from hoarfrost.features.decoding.views import parse_views
from hoarfrost.features.fingerprint import preprocessing
from hoarfrost.heads.files import SavedHead
from hoarfrost.runs import Run

FORMAT, FORMAT_VERSION = "hoarfrost-model", 1
RESEARCH = "Research use only. Not a medical device."
INPUT, OUTPUTS = "images", ("probabilities", "uncalibrated")


def metadata_of(run: Run, head: SavedHead) -> dict[str, str]:
    """Return the description of a head exported from `run`, each value a text; structured values are JSON."""
    facts = head.header
    size = input_size(head)
    steps = {key: value for key, value in facts.fingerprint.preprocessing.items() if key not in {"mean", "std"}}
    return {
        "format": f"{FORMAT} {FORMAT_VERSION}",
        "use": RESEARCH,
        "head": head.name,
        "classes": _json(head.names),
        "task": "independent labels" if head.is_multilabel else "one of the classes",
        "input": f"{INPUT}: uint8 RGB (N, 3, {size}, {size}), grey repeated in all three channels; the model normalises",
        "outputs": f"{OUTPUTS[0]}: calibrated (N, C) float32; {OUTPUTS[1]}: the same before calibration",
        "preprocessing": _json(steps),
        "views": _json(head.views),
        "operating_points": _json(operating_points(head)),
        "temperatures": _json(head.validated[0].temperatures),
        "fingerprint": facts.fingerprint.digest,
        "embeddings_precision": facts.fingerprint.precision.partition(":")[0],
        "exported_precision": "float32",
        "weights": facts.weights,
        "weights_sha256": facts.fingerprint.weights_sha256,
        "trained": run.config.created,
    }


def operating_points(head: SavedHead) -> list[dict[str, Any]]:
    """Return the thresholds chosen on validation, for each class that has some, the deciding one of each class first.

    `threshold` is for the calibrated probability, `threshold_uncalibrated` for the other: at or above it the class is
    predicted. Rules that no threshold meets are skipped.
    """
    fixed, found = head.validated[0], []
    for i, points in enumerate(fixed.points):
        name = head.names[i] if head.is_multilabel else head.names[1]
        temperature = fixed.temperatures[i if head.is_multilabel else 0]
        found += [
            {
                "class": name,
                "rule": point.name,
                "threshold": calibrated_threshold(point.threshold, temperature),
                "threshold_uncalibrated": point.threshold,
                "validation_sensitivity": point.sensitivity,
                "validation_specificity": point.specificity,
            }
            for point in points
            if point.threshold is not None
        ]
    return found


def calibrated_threshold(threshold: float, temperature: float) -> float:
    """Return the threshold on calibrated probabilities; calibration keeps their order."""
    p = min(max(threshold, 0.0), 1.0)
    return float(apply_temperature([[1 - p, p]], temperature)[0, 1])  # type: ignore[arg-type]


def input_size(head: SavedHead) -> int:
    """Return the height and width of the exported model's input: those of the head's largest view."""
    return max(view.size for view in parse_views(",".join(head.views), head.header.fingerprint.encoder))


def preparation(head: SavedHead) -> str:
    """Return how an image becomes the input, in words."""
    size, how = input_size(head), preprocessing(head.header.fingerprint.encoder)["interpolation"]
    return (
        f"Decode to 8-bit grey or RGB, resize to {size} x {size} ({how}; no crop, the aspect ratio is not kept), "
        f"repeat a grey channel three times, and put the channels first: uint8 (N, 3, {size}, {size})."
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
