"""Stage one: images in, cached embeddings out. Knows nothing of heads or metrics.

The package `hoarfrost` has the public interface. From here others may use `extraction.extract`, `extraction.plan`,
`cache`, `datasets`, `encoder.backbone` and `errors`.
"""
