"""A finished model on labelled images, or predictions, that it did not learn from. Nothing is fitted on the cohort."""
