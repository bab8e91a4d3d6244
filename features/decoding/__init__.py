"""From an image file's bytes to 8-bit pixels."""
