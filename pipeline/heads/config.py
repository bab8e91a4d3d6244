"""The parts of a run's configuration that its record repeats: how heads are trained and scored. Loads no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How all heads of a run are trained.

    Attributes
    ----------
    seed : int
        The first of `seeds` seeds; the splits depend on it too.
    seeds : int or None
        Number of trainings of each variant on the same images, with different initial weights and orders. None: by
        `HeadSpec.members`.
    epochs : int or None
        Number of passes over the training images. None: as many as make a sensible number of steps, see
        `hoarfrost.training.plan`.
    patience : int or None
        A head stops after this many epochs without a lower validation loss, and its best epoch is used. None: all epochs
        are trained, and the last one is used.
    batch_size : int or None
        None: by the number of training images, see `hoarfrost.training.plan`.
    schedule : str
        The learning rate's. "one-cycle": it rises along a cosine over the first three tenths of all steps, then falls to
        zero along a cosine. "cosine": it rises over the first twentieth, then falls. "constant".
    class_weight : str
        "none", or "balanced": each class counts the same, however many images it has.
    label_smoothing : float
        Share of each label that is spread evenly over all classes, 0 <= label_smoothing < 1.
    device : str
        "auto", "cpu" or "cuda"; in a run's record the device that was used.
    """

    seed: int = 0
    seeds: int | None = None
    epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None
    schedule: str = "one-cycle"
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
    operating_point : str
        The rule of the primary operating point, as `hoarfrost.evaluation.operating.Rule.parse` reads it.
    covariates : tuple of str
        Attribute columns of the dataset that images are compared and combined with.
    """

    per_patient: str | None = None
    prevalence: float | None = None
    operating_point: str = "youden"
    covariates: tuple[str, ...] = ()
