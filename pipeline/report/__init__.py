"""The report of a run: one self-contained HTML file that requests nothing."""

from hoarfrost.report.outputs import Compared, Reported, compare_runs, report_pooled, report_runs, write_report

__all__ = ["Compared", "Reported", "compare_runs", "report_pooled", "report_runs", "write_report"]
