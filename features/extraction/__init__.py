"""Embed what the cache lacks: on this machine, or on a cluster."""
