"""Stage one: images in, cached embeddings out. Knows nothing of heads or metrics.

What is meant for others is `features.extract.extract` with `features.plan.ExtractOptions`, `features.cache.EmbeddingCache`
to read what it wrote, `features.datasets.read_dataset`, `features.backbone.Backbone`, and `features.errors`.
`pipeline.interface` is shorter.
"""
