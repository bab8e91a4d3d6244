"""What speaks for a class, and where in an image; and which training images are like it."""

from pipeline.explain.cases import Cases
from pipeline.explain.dataset import ExplainSummary, explain_dataset
from pipeline.explain.examples import Example, TrainingExamples, training_examples
from pipeline.explain.explainer import Explainer, Explanation, open_explainer
from pipeline.explain.maps import Contributions, contributions, evidence, upsampled
from pipeline.explain.pictures import Shown, card, overlay

__all__ = [
    "Cases",
    "Contributions",
    "Example",
    "ExplainSummary",
    "Explainer",
    "Explanation",
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
