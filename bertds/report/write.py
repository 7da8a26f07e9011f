"""Writes the report of runs."""

from __future__ import annotations

from pathlib import Path

from bertds.display.fonts import Fonts
from bertds.display.theme import DARK, LIGHT
from bertds.errors import ConfigError, DataError
from bertds.system.atomic_files import atomic_path, write_text
from bertds.system.logs import log

TITLE = "BERT pre-training"


def write_report(runs: list[Path], out: Path, title: str = TITLE) -> Path:
    """Write the page and its charts.

    Args:
        runs: run folders, or folders that contain several.
        out: the output folder; it is made if it is missing.
        title: the headline.

    Returns:
        The path of the page.

    Raises:
        ConfigError: the folder has an ``index.html`` that is not a report.
        DataError: a folder is not a run, or no run has metrics.
    """
    from bertds.report.curves import charts_of
    from bertds.report.page import page
    from bertds.report.run_view import read_chains

    page_file = out / "index.html"
    if page_file.is_file() and not _is_report(page_file):
        raise ConfigError(f"{page_file}: is not a report of bertds; choose another folder")
    chains = read_chains(runs)
    if not any(run.train for chain in chains for run in chain.runs):
        raise DataError(f"{', '.join(map(str, runs))}: no metrics yet; nothing to report")
    charts, fonts = charts_of(chains), Fonts()
    out.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        for suffix, theme in (("", LIGHT), ("_dark", DARK)):
            with atomic_path(out / f"{name}{suffix}.png") as file:
                file.write_bytes(chart.png(theme, fonts))
    write_text(page_file, page(title, chains, list(charts.values())))
    if fonts.unshown:
        log.warning("%s", fonts.advice())
    return page_file


def _is_report(page_file: Path) -> bool:
    """Return whether a page is a report; those of earlier versions do not name their generator."""
    text = page_file.read_text(encoding="utf-8", errors="replace")
    return any(mark in text for mark in ('content="bertds"', ">light / dark</button>"))
