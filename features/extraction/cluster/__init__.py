"""The same extraction on a Ray cluster: on several hosts, or on all GPUs of one. The sole user of Ray."""

from hoarfrost.features.extraction.cluster.connection import INSTALL, is_installed
from hoarfrost.features.extraction.cluster.engine import RayEngine

__all__ = ["INSTALL", "RayEngine", "is_installed"]
