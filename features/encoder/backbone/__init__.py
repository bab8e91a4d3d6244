"""The frozen ResNet18: its weights, and the forward pass. The sole user of torchvision.models."""

from hoarfrost.features.encoder.backbone.compiling import settle_compute
from hoarfrost.features.encoder.backbone.forward import CELL_PIXELS, DIM, Backbone
from hoarfrost.features.encoder.backbone.weights import Weights, load_weights

__all__ = ["CELL_PIXELS", "DIM", "Backbone", "Weights", "load_weights", "settle_compute"]
