"""The report of a run: one HTML file that needs nothing beside it and requests nothing."""

from hoarfrost.report.outputs import Reported, report_runs, write_report

__all__ = ["Reported", "report_runs", "write_report"]
