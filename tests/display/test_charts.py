from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bertds.display import bar_charts
from bertds.display.bar_charts import BarChart
from bertds.display.charts import Chart, smooth, thousands
from bertds.display.theme import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def texts(chart: BarChart) -> dict[str, ElementTree.Element]:
    """The texts of a chart with their elements, in the order in which they are drawn."""
    root = ElementTree.fromstring(f"<svg>{chart.elements()}</svg>")
    return {element.text or "": element for element in root.iter("text")}


def histogram() -> BarChart:
    counts = np.array([0, 10, 0, 89, 1])
    return bar_charts.histogram(
        "Lengths", counts, [(0, "0"), (2, "<20"), (5, "50 +")], 3.5, "A note."
    )


def curve() -> Chart:
    def paint(axes: Axes, theme: Theme) -> None:
        axes.plot([1, 2, 3], [4, 2, 1], color=theme.series[0])
        axes.set_xlabel("step", color=theme.ink)

    return Chart(title="Loss", paint=paint)


@pytest.mark.parametrize("chart", [histogram(), curve()])
def test_a_chart_has_the_colours_and_the_font_of_its_page(chart: BarChart | Chart) -> None:
    drawn = chart.elements()
    assert set(re.findall(r"var\(--([^)]*)\)", drawn)) - {"card"} == {
        "ink",
        "line",
        "muted",
        "series-0",
    }
    assert not re.search(r"#[0-9a-f]{6}|font-family|http|<style", drawn)


def test_its_bytes_do_not_change() -> None:
    assert histogram().elements() == histogram().elements()
    assert curve().elements() == curve().elements()
    assert curve().png(LIGHT) == curve().png(LIGHT) != curve().png(DARK)
    assert curve().png(LIGHT).startswith(b"\x89PNG")


def test_the_bars_of_a_histogram_are_as_high_as_their_shares() -> None:
    chart = histogram()
    levels = {text.text: text.y for text in chart.texts if text.text.endswith("%")}
    per_percent = (levels["0%"] - levels["80%"]) / 80
    assert [box.height / per_percent for box in chart.boxes] == pytest.approx([10, 89, 1])
    bottom = chart.boxes[0].y + chart.boxes[0].height
    assert all(box.y + box.height == pytest.approx(bottom) for box in chart.boxes)
    first, second, third = (box.x for box in chart.boxes)
    assert second - first == pytest.approx(2 * (third - second))  # the bin between them is empty


@pytest.mark.parametrize(
    ("share", "levels"),
    [
        (0.5, ["0%", "10%", "20%", "30%", "40%", "50%"]),
        (0.12, ["0%", "2.5%", "5%", "7.5%", "10%", "12.5%"]),
        (0.05, ["0%", "1%", "2%", "3%", "4%", "5%"]),
        (0.004, ["0%", "0.1%", "0.2%", "0.3%", "0.4%"]),
    ],
)
def test_its_levels_are_round(share: float, levels: list[str]) -> None:
    bins = round(1 / share)
    found = texts(bar_charts.histogram("Even", np.full(bins, 1000), []))
    assert list(found) == levels


def test_an_empty_histogram_is_drawn() -> None:
    assert bar_charts.histogram("Nothing", np.array([], np.int64), [], None).elements()


def test_labels_do_not_touch() -> None:
    ticks = [(0, "1,000"), (0.2, "2,000"), (2, "5,000"), (2.1, "6,000"), (5, "10,000")]
    found = texts(bar_charts.histogram("Lengths", np.array([1, 0, 2, 0, 0]), ticks))
    assert [text for text in found if "%" not in text] == ["1,000", "5,000", "10,000"]


def test_bars_are_as_long_as_their_values_and_rare_ones_are_visible() -> None:
    rows = [("a", 1000.0, ""), ("b", 500.0, ""), ("c", 1.0, ""), ("d", 0.0, "")]
    lengths = [box.width for box in bar_charts.bars("Dropped", rows).boxes]
    assert lengths == pytest.approx([lengths[0] * f for f in (1, 0.5, 0.006, 0)])


def test_a_histogram_is_in_percent_with_its_median() -> None:
    found = texts(histogram())
    assert [t for t in found if not t.endswith("%") and t != "median"] == ["0", "<20", "50 +"]
    assert "80%" in found and "100%" in found and "median" in found
    at = {name: float(found[name].attrib["x"]) for name in ("0", "50 +", "median")}
    middle = at["0"] + (at["50 +"] - at["0"]) * 3.5 / 5
    assert at["median"] == pytest.approx(middle + 4, abs=0.1)  # to the right of its line


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("empty", "empty"),
        ("repetition_top_4_gram", "repetition_top_4_gram"),
        ("hf:wikimedia/wikipedia:20231101.en", "hf:wikimedia/wikipedia:20231101.en"),
        (f"hf:somebody/{'x' * 40}:en", f"hf:somebody/xx…{'x' * 16}:en"),
    ],
)
def test_the_name_of_a_bar_is_not_cut_off(name: str, shown: str) -> None:
    found = texts(bar_charts.bars("Dropped", [("written", 9.0, "9  (90%)"), (name, 1.0, "1")]))
    assert {"written", shown, "9  (90%)", "1"} == set(found)
    end = float(found[shown].attrib["x"])  # in points: 72 per inch
    assert end >= 5.6 * len(shown)
    assert end < 0.6 * 72 * 5.1  # the bars have room


def test_shares_name_their_parts() -> None:
    found = texts(bar_charts.shares("Masks", [("128", (("[MASK]", 0.8), ("itself", 0.2)))]))
    assert list(found) == ["128", "[MASK] 80.0%", "itself 20.0%"]


def test_a_text_of_a_chart_stays_text() -> None:
    assert "<b> & co" in texts(bar_charts.bars("Sources", [("<b> & co", 1.0, "1")]))


def test_smoothing_is_a_running_mean() -> None:
    assert smooth([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("highest", "wanted"),
    [
        (800, ["0", "500"]),
        (4000, ["0", "500", "4,000"]),
        (14000, ["0", "0.5k", "4k", "14k"]),
        (2e6, ["0", "0.5M", "2M"]),
    ],
)
def test_an_axis_is_labelled_in_one_unit(highest: float, wanted: list[str]) -> None:
    label = thousands(SimpleNamespace(get_view_interval=lambda: (0, highest)))
    for text in wanted:
        factor = {"k": 1e3, "M": 1e6}.get(text[-1], 1)
        assert label(float(text.rstrip("kM").replace(",", "")) * factor) == text
