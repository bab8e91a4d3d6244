"""What an exported model says of itself: enough to feed it, and to know what its numbers mean."""

import json
from typing import Any

from hoarfrost.evaluation import apply_temperature
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.features.fingerprint import preprocessing
from hoarfrost.heads.files import SavedHead
from hoarfrost.runs import Run

FORMAT, FORMAT_VERSION = "hoarfrost-model", 1
RESEARCH = "Research use only. Not a medical device."
INPUT, OUTPUTS = "images", ("probabilities", "uncalibrated")


def metadata_of(run: Run, head: SavedHead) -> dict[str, str]:
    """Describe an exported model, each value a text; what has structure is JSON.

    Parameters
    ----------
    run : Run
        That the head was trained in.
    head : SavedHead
    """
    facts = head.header
    size = facts.fingerprint.encoder.size
    steps = {key: value for key, value in facts.fingerprint.preprocessing.items() if key not in {"mean", "std"}}
    return {
        "format": f"{FORMAT} {FORMAT_VERSION}",
        "use": RESEARCH,
        "head": head.spec.name,
        "classes": _json(head.names),
        "task": "labels, each for itself" if head.is_multilabel else "one of the classes",
        "input": f"{INPUT}: uint8 RGB (N, 3, {size}, {size}), grey in all three; normalisation is inside",
        "outputs": f"{OUTPUTS[0]}: calibrated (N, C) float32; {OUTPUTS[1]}: the same before calibration",
        "preprocessing": _json(steps),
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
    """Give the thresholds that validation fixed, for each class that has some.

    `threshold` is of the calibrated probability, `threshold_uncalibrated` of the other: at or above it an image is called
    the class. What no threshold reaches is left out.
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
    """Give what a threshold on a probability becomes by calibration, which keeps the order."""
    p = min(max(threshold, 0.0), 1.0)
    return float(apply_temperature([[1 - p, p]], temperature)[0, 1])  # type: ignore[arg-type]


def preparation(encoder: EncoderSpec) -> str:
    """Say how an image becomes the input, for a person."""
    size, how = encoder.size, preprocessing(encoder)["interpolation"]
    return (
        f"Decode to 8-bit grey or RGB, squeeze to {size} x {size} ({how}; no crop, the aspect ratio is not kept), "
        f"repeat a grey channel three times, and put the channels first: uint8 (N, 3, {size}, {size})."
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)
