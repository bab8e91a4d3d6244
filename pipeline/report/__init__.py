"""The report of a run: one self-contained HTML file that requests nothing."""

from hoarfrost.report.outputs import Reported, report_pooled, report_runs, write_report

__all__ = ["Reported", "report_pooled", "report_runs", "write_report"]
