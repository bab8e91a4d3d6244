"""Predictor: a head in use. Embeddings in, probabilities out; opens no image and no file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.evaluation import apply_temperature, per_patient
from hoarfrost.evaluation.calibration import at_prevalence
from hoarfrost.evaluation.conformal import COVERAGE, prediction_sets
from hoarfrost.evaluation.operating import OperatingPoint, Rule
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.files import IMAGE, SavedHead, Validated

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FALSE_ALARMS = 0.05
SEPARATORS = ("|", ";", ",", "\t", " & ")  # of classes in one cell
NONE = "(none)"  # an empty set, and an image without a predicted label


@dataclass(frozen=True)
class Prediction:
    """What a head predicts for n images, or patients; C classes, or labels.

    Attributes
    ----------
    probabilities : ndarray (n, C) float64
        The head's own, as in predictions.csv.
    calibrated : ndarray (n, C) float64
        With the temperature that was fitted on validation images.
    called : ndarray (n, C) bool
        The predicted class at the operating point; with several labels per image, all predicted labels.
    sets : ndarray (n, C) bool; with several labels per image (n, C, 2) bool
        Which classes the conformal set holds; whether a label may be absent, and present.
    distances : ndarray (n,) float64 or None
        To the training set, see `hoarfrost.evaluation.novelty`; None of patients.
    is_novel : ndarray (n,) bool or None
        Whether it is farther than all but a stated share of validation images; None of patients, and if there are too few
        validation images.
    """

    probabilities: Floats
    calibrated: Floats
    called: Bools
    sets: Bools
    distances: Floats | None = None
    is_novel: Bools | None = None


class Predictor:
    """A head in use.

    Attributes
    ----------
    coverage : float
        Share of images whose conformal set should hold the true class, between 0 and 1.
    false_alarms : float
        Share of images like the training images that may be reported as out of distribution, between 0 and 1.
    prevalence : float, optional
        Of class 1, or of each label, where the head is used; calibrated probabilities are shifted to it.
    at : str, optional
        Another operating point than the head's first one, as `hoarfrost.evaluation.operating.Rule.parse` reads it.
    names : tuple of str
        Of the C classes, or labels.
    header : hoarfrost.features.cache.Header
        How embeddings must be made.
    committee : hoarfrost.heads.committee.Committee
        The head's members, in float64.
    novelty_threshold : float
        Distance beyond which an image is out of distribution; infinite if there are too few validation images.
    """

    def __init__(
        self, head: SavedHead, *, coverage: float = COVERAGE, false_alarms: float = FALSE_ALARMS, at: str | None = None,
        prevalence: float | None = None,
    ) -> None:  # fmt: skip
        head = head if at is None else _decided_at(head, at)
        self.head, self.names, self.header = head, head.names, head.header
        self.committee = head.committee.exact()
        self.coverage, self.false_alarms, self.prevalence = coverage, false_alarms, prevalence
        if prevalence is not None and not all(one.prevalences for one in head.validated):
            raise TrainingError(
                f"--prevalence {prevalence:g}: {head.name} has more than two classes, or its file is of an earlier version, "
                "so the prevalence that its probabilities are for is not known. Omit the option, or train again."
            )
        self.novelty_threshold = head.distances.quantile(1 - false_alarms)

    @property
    def units(self) -> tuple[str, ...]:
        """What there are validated thresholds for: "image", and where patients were known "mean" and "max"."""
        return tuple(one.unit for one in self.head.validated)

    def predict(self, x: npt.NDArray[np.float32]) -> Prediction:
        """Predict images.

        Parameters
        ----------
        x : ndarray (n, D) float32, or (n, V, D) of the V views of the head
            Embeddings that `header` describes. One image's prediction does not depend on the others.

        Raises
        ------
        ValueError
            If `x` does not have the views and the dimension of the header, or is not finite.
        """
        x = np.ascontiguousarray(x, np.float32)
        n_views = len(self.head.views)
        shape = (self.header.dim,) if n_views == 1 and x.ndim == 2 else (n_views, self.header.dim)
        if x.shape[1:] != shape:
            raise ValueError(f"embeddings must be (n, {', '.join(map(str, shape))}), not {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("some embeddings are NaN or infinite")
        if not len(x):
            return self._applied(IMAGE, np.empty((0, len(self.names))), np.empty(0))
        distances = self.head.novelty.distances(x if x.ndim == 2 else np.ascontiguousarray(x[:, 0]))
        return self._applied(IMAGE, self.committee.probabilities(torch.from_numpy(x)), distances)

    def predict_patients(self, probabilities: Floats, patients: Ints, how: str) -> Prediction:
        """Predict patients from their images.

        Parameters
        ----------
        probabilities : ndarray (n, C) float64
            `Prediction.probabilities` of the images.
        patients : ndarray (n,) int64
            The result is in their ascending order.
        how : "mean" or "max"
            How a patient's probabilities are joined.

        Raises
        ------
        TrainingError
            If nothing was validated for patients.
        """
        self.require_unit(how)
        placeholder = np.zeros(len(probabilities), np.int64)
        return self._applied(how, per_patient(placeholder, probabilities, patients, how).probabilities, None)

    def require_unit(self, how: str) -> None:
        """Raise TrainingError if nothing was validated for a unit."""
        if how not in self.units:
            raise TrainingError(
                f"--per-patient {how}: the head {self.head.name} was trained without patients (or with patients "
                "of several classes), so nothing is calibrated for patients. Omit the option, or train with patients."
            )

    def decided_by(self, unit: str = IMAGE) -> str:
        """Return the rule and the threshold that decide, "Youden's index, threshold >= 0.247"; "" with more classes."""
        points = [points[0] for points in self._validated(unit).points]
        rules = " or ".join(dict.fromkeys(point.name for point in points))
        return f"{rules}, threshold >= {points[0].threshold:.3f}" if len(points) == 1 else rules

    def assumptions(self) -> Iterator[str]:
        """Yield what calibrated probabilities at a stated prevalence assume."""
        if self.prevalence is not None:
            study = ", ".join(f"{one:.3g}" for one in self.head.validated[0].prevalences)
            yield (
                f"Calibrated probabilities are for a prevalence of {self.prevalence:g}; validated images have {study}. This "
                "assumes that images of each class look alike in both populations. The predicted class and the sets are "
                "unchanged."
            )

    def n_validated(self, unit: str = IMAGE) -> int:
        """Return the number of validation images, or patients."""
        return self._validated(unit).n

    def has_sets(self, unit: str = IMAGE) -> bool:
        """Return whether validation is large enough for sets of this coverage; if not, each set holds all classes."""
        return all(np.isfinite(one.quantile(self.coverage)) for one in self._validated(unit).calibrations)

    def answers(self, called: Bools) -> list[str]:
        """Return the predicted class of each row of `Prediction.called` (n, C); or all its labels, "a|b"."""
        return [self.joined(row) for row in called]

    def joined(self, which: Sequence[bool] | Bools) -> str:
        """Return the names of some classes, "a|b"; "(none)" if there are none.

        Where a name contains "|", the first of ";", ",", tab and " & " that none contains separates them.
        """
        separator = next((each for each in SEPARATORS if not any(each in name for name in self.names)), SEPARATORS[0])
        return separator.join(self.names[i] for i in np.flatnonzero(which)) or NONE

    def _validated(self, unit: str) -> Validated:
        return next(one for one in self.head.validated if one.unit == unit)

    def _applied(self, unit: str, probabilities: Floats, distances: Floats | None) -> Prediction:
        """Apply the temperatures, thresholds and conformal scores from validation."""
        fixed = self._validated(unit)
        calibrated = self._calibrated(probabilities, fixed.temperatures)
        if self.prevalence is not None:
            calibrated = self._at_prevalence(calibrated, fixed.prevalences, self.prevalence)
        is_novel = None
        if distances is not None and np.isfinite(self.novelty_threshold):
            is_novel = distances > self.novelty_threshold
        sets = prediction_sets(probabilities, fixed.calibrations, self.coverage)
        return Prediction(probabilities, calibrated, self._decided(probabilities, fixed), sets, distances, is_novel)

    def _calibrated(self, probabilities: Floats, temperatures: Sequence[float]) -> Floats:
        if not self.head.is_multilabel:
            return apply_temperature(probabilities, temperatures[0])
        of_labels = [
            apply_temperature(np.column_stack([1 - p, p]), temperature)[:, 1]
            for p, temperature in zip(probabilities.T, temperatures, strict=True)
        ]
        return np.stack(of_labels, axis=1)

    def _at_prevalence(self, calibrated: Floats, of_study: Sequence[float], new: float) -> Floats:
        if not self.head.is_multilabel:
            p = at_prevalence(calibrated[:, 1], of_study[0], new)
            return np.column_stack([1 - p, p])
        return np.stack([at_prevalence(p, study, new) for p, study in zip(calibrated.T, of_study, strict=True)], axis=1)

    def _decided(self, probabilities: Floats, fixed: Validated) -> Bools:
        """Apply the first operating point; of more than two classes take the most probable."""
        thresholds = np.array([points[0].threshold for points in fixed.points], np.float64)
        if self.head.is_multilabel:
            return np.asarray(probabilities >= thresholds)
        if len(thresholds):
            is_positive = probabilities[:, 1] >= thresholds[0]
            return np.column_stack([~is_positive, is_positive])
        return np.asarray(np.arange(len(self.names)) == probabilities.argmax(axis=1)[:, None])


def _decided_at(head: SavedHead, at: str) -> SavedHead:
    """Return a head whose first operating point is another of its own, or a stated threshold.

    Raises
    ------
    TrainingError
        If the head has no operating points, or not this one.
    """
    try:
        rule = Rule.parse(at)
    except ValueError as error:
        raise TrainingError(f"--at: {error}") from error
    if not any(head.validated[0].points):
        raise TrainingError(f"--at {at}: of several classes, {head.name} predicts the most probable one. Omit --at.")
    return replace(
        head,
        validated=tuple(
            replace(one, points=tuple(_first(points, rule, at) for points in one.points)) for one in head.validated
        ),
    )


def _first(points: Sequence[OperatingPoint], rule: Rule, at: str) -> tuple[OperatingPoint, ...]:
    if rule.kind == "threshold":
        return (OperatingPoint(rule.name, rule.level, None, None), *points)
    own = [point for point in points if point.name == rule.name and point.threshold is not None]
    if not own:
        known = ", ".join(point.name for point in points if point.threshold is not None)
        raise TrainingError(
            f"--at {at}: the head has no such operating point. It has: {known}. Choose one of these, --at threshold=..., or "
            f"train again with --operating-point {at}."
        )
    return (own[0], *(point for point in points if point is not own[0]))
