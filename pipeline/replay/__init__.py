"""A run computed again from its cache and its heads, without an image: which recorded numbers differ."""
