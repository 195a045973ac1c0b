"""Rules in SQL: each file of `sql/checks/` selects the rows that break one."""

from sql import SqlFile, library


def graph_checks() -> list[SqlFile]:
    """Give the checks of the segment graph."""
    return [file for file in library().values() if file.kind == "check" and file.name.startswith("graph_")]
