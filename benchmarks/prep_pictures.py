"""Pictures of the results of the preparation benchmarks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common import where

YARDSTICK = "(tokenizers alone)"
"""The stage of benchmarks/prep.py that everyone has."""
PROMISED_RATIO = 10
"""Times NVIDIA's speed."""
PAIRS_AND_MASKS = "pairs and masks"
PROMISED_ROWS = {"128:20": 150_000, "512:80": 60_000}
"""Rows per CPU-second of :data:`PAIRS_AND_MASKS`."""
PROMISED_PEAK_MB = 1000
GRAY = "0.6"

Fill = Callable[[Any], None]


def bars(
    axes: Any, names: Sequence[str], values: Sequence[float], form: str, colors: Any = "C0"
) -> None:
    """Draw horizontal bars from top to bottom, each with its number after its end."""
    drawn = axes.barh(range(len(names)), values, color=colors)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(drawn, [format(value, form) for value in values], padding=3, fontsize=8)
    axes.set_xlim(0, 1.15 * max(values, default=1.0))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def stage_bars(result: dict[str, Any]) -> Fill:
    """Return a function that draws MB per CPU-second of each stage, and the yardstick."""

    def fill(figure: Any) -> None:
        rows = [row for row in result["stages"] if "mb_per_second" in row]
        axes = figure.subplots()
        colors = [GRAY if "input" in row else "C0" for row in rows]
        names = [row["stage"] for row in rows]
        speeds = [row["mb_per_second"] for row in rows]
        if YARDSTICK in names:
            index = names.index(YARDSTICK)
            colors[index] = "C3"
            axes.axvline(
                speeds[index], color="C3", linestyle="--", linewidth=1, label="tokenizers alone"
            )
            axes.legend(loc="lower right", fontsize=8)
        bars(axes, names, speeds, ".1f", colors)
        gray = " (gray: of XML)" if GRAY in colors else ""
        axes.set_xlabel(f"MB per CPU-second{gray}")
        axes.set_title(f"Preparation by stage\n{where(result)}", fontsize=10)

    return fill


def ratio_bars(result: dict[str, Any]) -> Fill:
    """Return a function that draws how many times NVIDIA's speed ours has."""

    def fill(figure: Any) -> None:
        names = [row["stage"] for row in result["stages"]]
        ratios = [row["ratio"] for row in result["stages"]]
        axes = figure.subplots()
        bars(axes, names, ratios, ".1f")
        axes.set_xlim(0, 1.15 * max(*ratios, PROMISED_RATIO))
        axes.axvline(PROMISED_RATIO, color="k", linestyle="--", linewidth=1)
        axes.set_xlabel("times the MB per CPU-second of NVIDIA's script (dashed: promised)")
        axes.set_title(
            f"Ours compared with NVIDIA's on the same text\n{where(result)}", fontsize=10
        )

    return fill


def sizes_and_workers(result: dict[str, Any]) -> Fill:
    """Return a function that draws time and memory over the corpus, and the two workers."""

    def fill(figure: Any) -> None:
        panels = figure.subplots(1, 3 if result["two_workers"] else 2)
        time_axes, memory_axes = panels[:2]
        runs = sorted(result["runs"], key=lambda run: run["mb_text"])
        one = [run for run in runs if run["run"].endswith("one worker")]
        two = [run for run in runs if run["run"].endswith("two workers")]
        for name, among, mark in (("one worker", one, "o-"), ("two workers", two, "s")):
            if not among:
                continue
            text = [run["mb_text"] for run in among]
            time_axes.plot(
                text, [run["wall_seconds"] for run in among], mark, label=f"{name}, clock"
            )
            memory_axes.plot(text, [run["peak_mb_of_a_process"] for run in among], mark, label=name)
        cpu = [run["cpu_seconds"] for run in one]
        time_axes.plot(
            [run["mb_text"] for run in one], cpu, "--", color=GRAY, label="one worker, CPU"
        )
        memory_axes.axhline(PROMISED_PEAK_MB, color="k", linestyle="--", linewidth=1)
        for axes, what in (
            (time_axes, "seconds"),
            (memory_axes, "MB, largest process"),
        ):
            axes.set_xlabel("MB of text")
            axes.set_ylabel(what)
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        time_axes.set_title("time", fontsize=10)
        memory_axes.set_title("memory (dashed: promised)", fontsize=10)
        time_axes.legend(fontsize=8)
        if result["two_workers"]:
            speed_ups(panels[2], result["two_workers"])
        figure.suptitle(where(result), fontsize=10)

    return fill


def speed_ups(axes: Any, pairs: Sequence[dict[str, float]]) -> None:
    """Draw what two workers gain: the median of the pairs, and each pair as a point."""
    names = {
        "speed_up_by_clock": "by the clock",
        "speed_up_by_cpu": "by CPU time",
        "cores_had": "cores had",
    }
    for index, key in enumerate(names):
        values = [pair[key] for pair in pairs]
        middle = statistics.median(values)
        axes.bar(index, middle, color="C0" if key.startswith("speed") else GRAY)
        axes.plot([index] * len(values), values, "k.", markersize=4)
        axes.annotate(
            f"{middle:.2f}",
            (index, 0),
            (0, 4),
            textcoords="offset points",
            ha="center",
            color="white",
            fontsize=9,
        )
    axes.axhline(2, color="k", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(names)), names.values(), fontsize=8)
    axes.set_ylim(0, 2.2)
    axes.set_title("two workers: times one", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def row_bars(result: dict[str, Any]) -> Fill:
    """Return a function that draws rows per CPU-second by stage, and the promised ones."""

    def fill(figure: Any) -> None:
        lengths = list(dict.fromkeys(row["rows_of"] for row in result["rates"]))
        panels = figure.subplots(1, len(lengths), squeeze=False)[0]
        for axes, length in zip(panels, lengths, strict=True):
            rates = {
                row["stage"]: row["rows_per_cpu_second"]
                for row in result["rates"]
                if row["rows_of"] == length
            }
            bars(axes, list(rates), list(rates.values()), ",.0f")
            axes.set_xlim(0, 1.3 * max(rates.values()))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,g}")
            axes.locator_params(axis="x", nbins=5)
            if goal := PROMISED_ROWS.get(length):
                index = list(rates).index(PAIRS_AND_MASKS)
                axes.plot([goal, goal], [index - 0.4, index + 0.4], "k--")
            axes.set_title(f"rows {length} (dashed: promised)", fontsize=10)
            axes.set_xlabel("thousand rows per CPU-second")
        figure.suptitle(where(result), fontsize=10)

    return fill


def residue_grid(result: dict[str, Any]) -> Fill:
    """Return a function that draws marks left per million characters, and MB/s, by tool."""

    def fill(figure: Any) -> None:
        dumps = result["dumps"]
        panels = figure.subplots(len(dumps), 2, squeeze=False, width_ratios=(2, 1))
        for (grid, speed), dump in zip(panels, dumps, strict=True):
            tools = dump["tools"]
            names = [tool["tool"] for tool in tools]
            marks = list(tools[0]["residue_per_million"])
            left = [list(tool["residue_per_million"].values()) for tool in tools]
            shade = [[math.log10(1 + value) for value in row] for row in left]
            grid.imshow(shade, cmap="Oranges", vmin=0, vmax=4, aspect="auto")
            for (line, column), _ in np.ndenumerate(np.array(shade)):
                grid.text(column, line, f"{left[line][column]:g}", ha="center", va="center")
            grid.set_xticks(range(len(marks)), [{" ,": "space ,"}.get(m, m) for m in marks])
            grid.set_yticks(range(len(names)), names)
            grid.tick_params(length=0)
            grid.set_title(f"{dump['dump'][:50]}: marks per million characters", fontsize=9)
            bars(speed, [""] * len(names), [t["mb_xml_per_cpu_second"] for t in tools], ".1f")
            speed.set_ylim(grid.get_ylim())
            speed.set_yticks([])
            speed.set_title("MB of XML per CPU-second", fontsize=9)
        figure.suptitle(where(result), fontsize=10)

    return fill


def filter_bars(result: dict[str, Any]) -> Fill:
    """Return a function that draws MB per CPU-second of each filter."""

    def fill(figure: Any) -> None:
        axes = figure.subplots()
        speeds = result["mb_per_cpu_second"]
        bars(axes, list(speeds), list(speeds.values()), ".1f")
        axes.set_xlabel("MB of text per CPU-second")
        axes.set_title(f"Filters of preparation\n{where(result)}", fontsize=10)

    return fill
