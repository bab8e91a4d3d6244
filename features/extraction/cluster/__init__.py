"""The same extraction on a Ray cluster: on several hosts, or on all GPUs of one. The sole user of Ray."""

from hoarfrost.features.extraction.cluster.connection import is_installed
from hoarfrost.features.extraction.cluster.engine import Cluster, say_what_is_idle

__all__ = ["Cluster", "is_installed", "say_what_is_idle"]
