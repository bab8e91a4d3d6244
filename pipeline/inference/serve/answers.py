"""What the service answers, as JSON: the models that its OpenAPI document describes."""

from pydantic import BaseModel, Field

RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis."


class Threshold(BaseModel):
    """The threshold at or above which a class is predicted."""

    rule: str = Field(description="How it was chosen on the validation images.")
    value: float = Field(description="Of the calibrated probability.")


class About(BaseModel):
    """The head that answers."""

    research_use: str = RESEARCH_USE
    head: str = Field(description="The head's specification.")
    classes: list[str]
    positive: str | None = Field(description="The class that the threshold is of; null with more than two classes.")
    threshold: float | None = Field(description="At or above this probability, before calibration, it is predicted.")
    thresholds: dict[str, Threshold] = Field(
        description="Of the positive class, or of each label; empty with more than two classes, where none is needed."
    )
    weights: str = Field(description="The backbone's weights; random:SEED is an untrained backbone.")
    fingerprint: str = Field(description="Digest of all that decides an embedding's value.")
    trained_on: int | None = Field(description="Images in the training split; null if not known.")
    coverage: float = Field(
        description="Share of images like the validation images whose conformal set holds the true class."
    )
    map_cells: int | None = Field(
        description="Cells along each side of an activation map; null without a feature map, when nothing is explained."
    )
    max_bytes: int
    max_pixels: int


class Neighbour(BaseModel):
    """A training image that is similar to the one that was sent."""

    label: str
    path: str
    distance: float = Field(description="Between the standardised embeddings.")
    picture: str | None = Field(description="A small picture as a data URI; null if the image no longer exists.")


class Explanation(BaseModel):
    """Where in the image the evidence lies, and which training images are similar."""

    image: str = Field(description="What the encoder saw, a PNG as a data URI.")
    map: str = Field(description="The same under its class activation map, a PNG as a data URI.")
    map_of: str = Field(description="The class that the map is of.")
    nearest: list[Neighbour]


class Answer(BaseModel):
    """What the head predicts for one image."""

    research_use: str = RESEARCH_USE
    head: str
    probabilities: dict[str, float] = Field(description="Calibrated with the temperature fitted on validation images.")
    called: list[str] = Field(description="The predicted class; with several labels per image, all predicted labels.")
    conformal_set: list[str] = Field(
        description="Holds the true class for the stated share of images like the validation images."
    )
    coverage: float
    distance: float = Field(description="Between the embedding and those of the training images.")
    distance_limit: float | None = Field(
        description="Beyond it an image is out of distribution; null if there are too few validation images."
    )
    is_out_of_distribution: bool | None
    in_training_split: bool | None = Field(
        default=None, description="Whether the head learned from an image of the same bytes; null if not known."
    )
    explanation: Explanation | None = None


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str
