"""A head with its backbone as one file, from pixels to probabilities, and its model card."""

from hoarfrost.inference.export.exporting import ExportSummary, export_head

__all__ = ["ExportSummary", "export_head"]
