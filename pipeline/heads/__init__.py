"""Heads: specified, built and saved."""
