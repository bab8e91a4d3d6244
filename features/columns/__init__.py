"""Columns of texts and labels, of millions of rows."""
