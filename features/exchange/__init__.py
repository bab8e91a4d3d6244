"""Embeddings that other programs made, imported into a cache; and a cache's embeddings, exported for other programs."""
