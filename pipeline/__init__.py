"""Stage two: cached embeddings in; heads, metrics and report out."""

__version__ = "0.1.0"
