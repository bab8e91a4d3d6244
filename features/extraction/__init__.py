"""Embed the images that are missing from the cache, on this machine or on a cluster."""
