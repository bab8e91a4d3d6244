"""The parts of a run's configuration that its record repeats: how heads are trained and scored. Loads no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How all heads of a run are trained.

    Attributes
    ----------
    seed : int
        The first of `seeds` seeds; the splits depend on it too.
    seeds : int
        Number of trainings of each variant, with different initial weights and orders.
    epochs : int
        Largest number of passes over the training split.
    patience : int
        A head stops after this many epochs without a lower validation loss.
    schedule : str
        "constant", or "cosine": each step's learning rate rises over the first twentieth of all steps, and
        then falls to zero along a cosine.
    class_weight : str
        "none", or "balanced": each class counts the same, however many images it has.
    label_smoothing : float
        Share of each label that is spread evenly over all classes, 0 <= label_smoothing < 1.
    device : str
        "auto", "cpu" or "cuda"; in a run's record the device that was used.
    """

    seed: int = 0
    seeds: int = 1
    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    schedule: str = "constant"
    class_weight: str = "none"
    label_smoothing: float = 0.1
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """What is scored, and the prevalence that scores refer to.

    Attributes
    ----------
    per_patient : "mean", "max" or None
        How a patient's probabilities are combined; None to score images.
    prevalence : float or None
        Share of the positive class where the head will be used, in (0, 1), for predictive values and net benefit.
    """

    per_patient: str | None = None
    prevalence: float | None = None
