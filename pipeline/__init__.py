"""Stage two: cached embeddings in; heads, metrics and report out.

What is meant for others is `pipeline.interface`; `pipeline.experiment.run_experiment` has all options of `train`, and
`pipeline.metrics` the statistics, on arrays alone.
"""

__version__ = "0.1.0"
