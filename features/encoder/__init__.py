"""The frozen network: what it is, where it runs, its weights and its forward pass."""
