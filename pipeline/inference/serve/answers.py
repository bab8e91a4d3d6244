"""What the service says, as JSON: the models that its OpenAPI document describes."""

from pydantic import BaseModel, Field

RESEARCH_USE = "Research use only. Not a medical device; not for diagnosis."


class About(BaseModel):
    """The head that answers."""

    research_use: str = RESEARCH_USE
    head: str = Field(description="The head's specification.")
    classes: list[str]
    positive: str | None = Field(
        description="The class that the operating point calls; null with more than two classes."
    )
    threshold: float | None = Field(description="Its probability, before calibration, from which it is called.")
    weights: str = Field(description="The backbone's weights; random:SEED is an untrained backbone.")
    fingerprint: str = Field(description="Digest of all that decides an embedding's value.")
    trained_on: int | None = Field(description="Images in the training split; null where that is not known.")
    coverage: float = Field(description="Share of images like validation's whose conformal set holds the true class.")
    map_cells: int | None = Field(
        description="Cells along each side of an activation map; null where the encoder has none, and nothing is explained."
    )
    max_bytes: int
    max_pixels: int


class Neighbour(BaseModel):
    """A training image near to the one that was sent."""

    label: str
    path: str
    distance: float = Field(description="Between the standardised embeddings.")
    picture: str | None = Field(
        description="A small picture as a data URI; null where the image is not there any more."
    )


class Explanation(BaseModel):
    """Why: where in the image, and by which training images."""

    image: str = Field(description="What the encoder saw, a PNG as a data URI.")
    map: str = Field(description="The same under its class activation map, a PNG as a data URI.")
    map_of: str = Field(description="The class that the map is of.")
    nearest: list[Neighbour]


class Answer(BaseModel):
    """What the head says of one image."""

    research_use: str = RESEARCH_USE
    head: str
    probabilities: dict[str, float] = Field(description="Calibrated by the temperature that validation fixed.")
    called: list[str] = Field(
        description="The class at the operating point; with several labels an image, all that are called."
    )
    conformal_set: list[str] = Field(
        description="Holds the true class for the stated share of images like validation's."
    )
    coverage: float
    distance: float = Field(description="Of the embedding to the training set's.")
    distance_limit: float | None = Field(
        description="Beyond it an image is out of distribution; null: not enough validation images."
    )
    is_out_of_distribution: bool | None
    explanation: Explanation | None = None


class Problem(BaseModel):
    """What is wrong with a request."""

    detail: str
