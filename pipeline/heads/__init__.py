"""Heads: how they are specified, built and saved."""
