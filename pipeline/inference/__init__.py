"""A trained head in use: predictions, explanations, export and serving."""
