"""``bertds report RUN...``: one page that shows what came out, to be looked at and passed on.

A phase 2 that starts from a phase 1 is drawn behind it in the same pictures. Several runs are laid
over each other. The page holds everything inside it; the pictures are written beside it as PNG.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bertds.errors import EXIT_OK, DataError
from bertds.system.atomic_files import atomic_path, write_text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds report", description="Write one HTML page, and PNGs, on one or several runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="run folders, or folders of several (demo)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="DIR",
                        help="where index.html and the pictures go (report)")  # fmt: skip
    parser.add_argument("--title", default="BERT pre-training", help="the page's headline")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Write the report."""
    args = parse_args(argv)
    print(write_report(args.runs, args.out, args.title), file=sys.stderr)
    return EXIT_OK


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
