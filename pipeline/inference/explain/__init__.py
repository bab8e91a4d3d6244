"""What speaks for a class, and where in an image; and which training images are like it."""

from hoarfrost.inference.explain.cases import Cases
from hoarfrost.inference.explain.dataset import ExplainSummary, explain_dataset
from hoarfrost.inference.explain.examples import Example, TrainingExamples, training_examples
from hoarfrost.inference.explain.explainer import ExplainedImage, Explainer, open_explainer
from hoarfrost.inference.explain.maps import Contributions, contributions, evidence, upsampled
from hoarfrost.inference.explain.pictures import Shown, card, overlay

__all__ = [
    "Cases",
    "Contributions",
    "Example",
    "ExplainSummary",
    "ExplainedImage",
    "Explainer",
    "Shown",
    "TrainingExamples",
    "card",
    "contributions",
    "evidence",
    "explain_dataset",
    "open_explainer",
    "overlay",
    "training_examples",
    "upsampled",
]
