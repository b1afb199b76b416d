"""`curves.json` to a report bundle: a self-contained page, figures, tables, citation, manifest."""

from lab.report.bundle import build, rows, table, verify

__all__ = ["build", "rows", "table", "verify"]
