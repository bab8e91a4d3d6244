"""What a run is asked for, as far as its record repeats it: how heads are trained, and what is scored. Loads no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How all heads of a run are trained.

    Attributes
    ----------
    seed : int
        The first of `seeds` seeds; it decides the splits too.
    seeds : int
        Train each variant so many times, with other initial weights and orders.
    epochs : int
        At most so many passes over the training split.
    patience : int
        Stop a head after so many epochs in which its validation loss did not fall.
    batch_size : int
    schedule : str
        "constant", or "cosine": each step's learning rate rises over the first twentieth of all steps, and
        then falls to zero along a cosine.
    class_weight : str
        "none", or "balanced": each class counts the same, however many images it has.
    label_smoothing : float
        Share of each label that is spread evenly over all classes, 0 <= label_smoothing < 1.
    device : str
        "auto", "cpu" or "cuda"; in a run's record the one that it was.
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
    """What scores count, and where they are to hold.

    Attributes
    ----------
    per_patient : "mean", "max" or None
        Score patients, whose images' probabilities are so joined, in place of images.
    prevalence : float or None
        Of the positive class where the head is to be used, in (0, 1): predictive values and net benefit for there.
    """

    per_patient: str | None = None
    prevalence: float | None = None
