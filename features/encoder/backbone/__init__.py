"""A frozen encoder: its weights, and the forward pass."""

from hoarfrost.features.encoder.backbone.compiling import choose_compute
from hoarfrost.features.encoder.backbone.forward import Backbone
from hoarfrost.features.encoder.backbone.weights import Weights, load_weights

__all__ = ["Backbone", "Weights", "choose_compute", "load_weights"]
