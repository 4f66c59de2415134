"""Plots are well-formed, say every name and value, and suit light and dark pages."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from benchmarks.plots import bars, lines

SVG = "{http://www.w3.org/2000/svg}"
RATES = {"ours, warm": 4000.0, "a <peer> & more": 10.0}
CURVES = {
    "ours": [(1.0, 1.0), (8.0, 2.0), (32.0, 8.0)],
    "peer": [(1.0, 1.0), (8.0, 2.5), (32.0, 8.1)],
}


def words(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314


def test_bars_say_names_and_values() -> None:
    assert words(bars("Rates", RATES, own="ours")) == [
        "Rates", "ours, warm", "4,000", "a <peer> & more", "10",
    ]  # fmt: skip


def test_the_smallest_bar_can_still_be_seen() -> None:
    tree = ET.fromstring(bars("Rates", {"a": 1e6, "b": 1.0}, own="a"))  # noqa: S314
    assert all(float(bar.attrib["width"]) >= 1 for bar in tree.iter(f"{SVG}rect"))


def test_curves_have_their_names_and_values_of_the_axis() -> None:
    said = words(lines("Latency", "connections", CURVES, own="ours", log_y=True))
    assert {"ours", "peer", "connections", "1", "8", "32"} <= set(said)


def test_labels_of_curves_that_end_together_do_not_overlap() -> None:
    tree = ET.fromstring(lines("Latency", "connections", CURVES))  # noqa: S314
    heights = [
        float(text.attrib["y"])
        for text in tree.iter(f"{SVG}text")
        if text.text in CURVES
    ]
    assert abs(heights[0] - heights[1]) >= 13


def test_one_step_is_a_plot_too() -> None:
    assert "<path" in lines("Load", "streams", {"envoy": [(1.0, 0.5)]})


def test_plots_suit_light_and_dark_pages() -> None:
    for svg in (bars("a", RATES, own="ours"), lines("a", "b", CURVES)):
        assert "prefers-color-scheme: dark" in svg
