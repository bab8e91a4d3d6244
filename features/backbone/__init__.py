"""The frozen ResNet18: its weights, and the forward pass. The sole user of torchvision.models."""

from features.backbone.compiling import settle_compute
from features.backbone.forward import CELL_PIXELS, DIM, Backbone
from features.backbone.weights import Weights, load_weights

__all__ = ["CELL_PIXELS", "DIM", "Backbone", "Weights", "load_weights", "settle_compute"]
