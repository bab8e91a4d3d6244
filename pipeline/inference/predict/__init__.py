"""A head in use: from embeddings or images to probabilities, classes, conformal sets and a warning of unfamiliar images."""

from hoarfrost.inference.predict.dataset import PredictionSummary, predict_dataset
from hoarfrost.inference.predict.opening import ListedHead, list_heads, open_predictor, run_head
from hoarfrost.inference.predict.predictor import Predictor

__all__ = [
    "ListedHead",
    "PredictionSummary",
    "Predictor",
    "list_heads",
    "open_predictor",
    "predict_dataset",
    "run_head",
]
