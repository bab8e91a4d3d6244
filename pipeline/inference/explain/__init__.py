"""Evidence for a class, where in the image it lies, and the training images that are most similar."""

from hoarfrost.inference.explain.cases import Cases
from hoarfrost.inference.explain.dataset import ExplainSummary, explain_dataset
from hoarfrost.inference.explain.drawing import overlay
from hoarfrost.inference.explain.explainer import Explainer, in_colour, open_explainer
from hoarfrost.inference.explain.maps import upsampled

__all__ = [
    "Cases",
    "ExplainSummary",
    "Explainer",
    "explain_dataset",
    "in_colour",
    "open_explainer",
    "overlay",
    "upsampled",
]
