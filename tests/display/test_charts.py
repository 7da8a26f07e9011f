from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

from bertds.display import charts
from bertds.display.charts import Chart, smooth, thousands
from bertds.display.theme import DARK, LIGHT


def texts(chart: Chart) -> dict[str, ElementTree.Element]:
    """The texts of a chart with their elements, in the order in which they are drawn."""
    root = ElementTree.fromstring(f"<svg>{chart.elements()}</svg>")
    return {element.text or "": element for element in root.iter("text")}


def histogram() -> Chart:
    counts = np.array([0, 10, 0, 89, 1])
    return charts.histogram("Lengths", counts, [(0, "0"), (2, "<20"), (5, "50 +")], 3.5, "A note.")


def test_a_chart_has_the_colours_and_the_font_of_its_page() -> None:
    drawn = histogram().elements()
    assert set(re.findall(r"var\(--([^)]*)\)", drawn)) == {
        "card",
        "ink",
        "line",
        "muted",
        "series-0",
    }
    assert not re.search(r"#[0-9a-f]{6}|font-family|http|<style", drawn)


def test_its_bytes_do_not_change() -> None:
    assert histogram().elements() == histogram().elements()
    assert histogram().png(LIGHT) == histogram().png(LIGHT) != histogram().png(DARK)
    assert histogram().png(LIGHT).startswith(b"\x89PNG")


def test_a_histogram_is_in_percent_with_its_median() -> None:
    found = texts(histogram())
    assert [t for t in found if not t.endswith("%") and t != "median"] == ["0", "<20", "50 +"]
    assert "80 %" in found and "100 %" in found and "median" in found
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
    found = texts(charts.bars("Dropped", [("written", 9.0, "9  (90 %)"), (name, 1.0, "1")]))
    assert {"written", shown, "9  (90 %)", "1"} == set(found)
    end = float(found[shown].attrib["x"])  # in points: 72 per inch
    assert end >= 5.6 * len(shown)
    assert end < 0.6 * 72 * 5.1  # the bars have room


def test_shares_name_their_parts() -> None:
    found = texts(charts.shares("Masks", [("128", (("[MASK]", 0.8), ("itself", 0.2)))]))
    assert list(found) == ["128", "[MASK] 80.0%", "itself 20.0%"]


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
