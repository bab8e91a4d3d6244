"""Stage one: images in, cached embeddings out. Knows nothing of heads or metrics."""
