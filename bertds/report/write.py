"""Writes the report of runs."""

from __future__ import annotations

from pathlib import Path

from bertds.errors import DataError
from bertds.system.atomic_files import atomic_path, write_text


def write_report(runs: list[Path], out: Path, title: str = "BERT pre-training") -> Path:
    """Write the page and its pictures.

    Args:
        runs: run folders, or folders that hold several.
        out: the folder to write; made if missing.
        title: the headline.

    Returns:
        The page.

    Raises:
        DataError: a folder is no run, or none of them has a line of metrics.
    """
    from bertds.report.charts import draw_all
    from bertds.report.page import page
    from bertds.report.run_view import read_chains

    chains = read_chains(runs)
    if not any(run.train for chain in chains for run in chain.runs):
        raise DataError(f"{', '.join(map(str, runs))}: no metrics yet; nothing to report")
    pictures = draw_all(chains)
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        for suffix, data in (("", picture.light), ("_dark", picture.dark)):
            with atomic_path(out / f"{picture.name}{suffix}.png") as file:
                file.write_bytes(data)
    write_text(out / "index.html", page(title, chains, pictures))
    return out / "index.html"
