"""A head in use: from embeddings or images to probabilities, classes, conformal sets and a warning of unfamiliar images."""

from hoarfrost.inference.predict.dataset import PredictionSummary, predict_dataset
from hoarfrost.inference.predict.listing import ListedHead, list_heads
from hoarfrost.inference.predict.opening import open_predictor, run_head
from hoarfrost.inference.predict.predictor import COVERAGE, FALSE_ALARMS, NONE, Prediction, Predictor

__all__ = [
    "COVERAGE",
    "FALSE_ALARMS",
    "NONE",
    "ListedHead",
    "Prediction",
    "PredictionSummary",
    "Predictor",
    "list_heads",
    "open_predictor",
    "predict_dataset",
    "run_head",
]
