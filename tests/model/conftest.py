"""Sums up the explored histories of one or several processes."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many histories there were in all."""
    found = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    explored = [properties for properties in found if "histories" in properties]
    if explored:
        histories, seconds = (sum(one[name] for one in explored) for name in ("histories", "seconds"))
        terminalreporter.write_line(f"{histories} histories in {len(explored)} explorations, {seconds:.0f} s")
