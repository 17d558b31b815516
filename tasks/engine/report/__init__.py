"""The report: reads what runs wrote, compares and draws it. ``run.py`` never imports it."""

from tasks.engine.records.runs import Run, SkippedRun, read_run, read_runs
from tasks.engine.report.write import Report, write_report, write_runs

__all__ = ["Report", "Run", "SkippedRun", "read_run", "read_runs", "write_report", "write_runs"]
