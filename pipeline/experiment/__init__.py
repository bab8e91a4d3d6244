"""From a cached dataset to a run: the task, its splits, training, scores and their assessment."""
