"""A head in use: from embeddings, or from images, to probabilities, classes, conformal sets and a warning of the unknown."""

from pipeline.predict.dataset import PredictionSummary, predict_dataset
from pipeline.predict.listing import ListedHead, list_heads
from pipeline.predict.opening import open_predictor, run_head
from pipeline.predict.predictor import COVERAGE, FALSE_ALARMS, NONE, Prediction, Predictor

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
