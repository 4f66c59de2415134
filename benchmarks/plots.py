"""Plots as SVG, readable on light and on dark pages. Pure.

What is ours has a colour, all else is grey; labels stand at what they name, so that
nothing hangs on telling colours apart.
"""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Points = Sequence[tuple[float, float]]

_WIDTH = 760
_TITLE = 34
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; fill: #24292f; }
.own { fill: #0969da; } .other { fill: #afb8c1; }
path { fill: none; stroke-width: 2; }
path.own { stroke: #0969da; fill: none; } path.other { stroke: #8c959f; fill: none; }
.grid { stroke: #d0d7de; stroke-width: 1; }
text.own { fill: #0969da; font-weight: 600; } text.other { fill: #57606a; }
@media (prefers-color-scheme: dark) {
  text, text.other { fill: #9198a1; } .title { fill: #f0f6fc; }
  .own, text.own { fill: #4493f8; } .other { fill: #59636e; }
  path.own { stroke: #4493f8; fill: none; } path.other { stroke: #7d8590; fill: none; }
  .grid { stroke: #3d444d; }
}
"""

_BAR, _BAR_GAP = 20, 10
_NAMES, _FIGURES = 170, 70  # room beside the bars

_LEFT, _RIGHT, _HEIGHT = 60, 190, 300
_LABEL = 15  # between two labels, at least


def bars(title: str, values: Mapping[str, float], own: str) -> str:
    """Return a bar for each value; names that begin with ``own`` are ours."""
    longest = max(values.values())
    room = _WIDTH - _NAMES - _FIGURES
    parts = []
    for number, (name, value) in enumerate(values.items()):
        top = _TITLE + number * (_BAR + _BAR_GAP)
        middle = top + _BAR * 0.75
        width = max(1.0, value / longest * room)
        whose = _whose(name, own)
        parts += [
            f'<text x="{_NAMES - 8}" y="{middle:.1f}" text-anchor="end" '
            f'class="{whose}">{escape(name)}</text>',
            f'<rect x="{_NAMES}" y="{top}" width="{width:.1f}" height="{_BAR}" rx="2" '
            f'class="{whose}"/>',
            f'<text x="{_NAMES + width + 6:.1f}" y="{middle:.1f}">{value:,.0f}</text>',
        ]
    return _svg(title, _TITLE + len(values) * (_BAR + _BAR_GAP), parts)


def lines(
    title: str,
    x_name: str,
    curves: Mapping[str, Points],
    own: str = "",
    *,
    log_y: bool = False,
) -> str:
    """Return a curve for each series, over an axis of powers.

    Names that begin with ``own`` are ours. The other axis begins at 0 or has powers,
    too.
    """
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    across = _Axis(log10(min(xs)), log10(max(xs)))
    upwards = _powers(min(ys), max(ys)) if log_y else _Axis(0, _round_up(max(ys)))
    plot = _Plot(across, upwards, log_y=log_y)
    parts = [*plot.grid(sorted(set(xs)))]
    ends = {name: plot.y(points[-1][1]) for name, points in curves.items()}
    labels = _apart(ends)
    for name, points in curves.items():
        whose = _whose(name, own)
        path = "L".join(f"{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in points)
        parts += [
            f'<path d="M{path}" class="{whose}"/>',
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{labels[name] + 4:.1f}" '
            f'class="{whose}">{escape(name)}</text>',
        ]
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT + 40}" '
        f'text-anchor="middle">{escape(x_name)}</text>'
    )
    return _svg(title, _HEIGHT + 50, parts)


class _Axis:
    """Values from the first to the last, as shares of the whole."""

    def __init__(self, first: float, last: float) -> None:
        self.first = first
        self.length = (last - first) or 1.0

    def share(self, value: float) -> float:
        return (value - self.first) / self.length


class _Plot:
    """Where values stand in the picture."""

    def __init__(self, across: _Axis, upwards: _Axis, *, log_y: bool) -> None:
        self._across = across
        self._upwards = upwards
        self._log_y = log_y

    def x(self, value: float) -> float:
        return _LEFT + self._across.share(log10(value)) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = self._upwards.share(log10(value) if self._log_y else value)
        return _HEIGHT - share * (_HEIGHT - _TITLE - 10)

    def grid(self, xs: Sequence[float]) -> Iterator[str]:
        """Return lines at heights, and the values below."""
        for value in self._heights():
            y = self.y(value)
            yield (
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                'class="grid"/>'
            )
            yield (
                f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{value:g}</text>"
            )
        for value in xs:
            yield (
                f'<text x="{self.x(value):.1f}" y="{_HEIGHT + 20}" '
                f'text-anchor="middle">{round(value):,}</text>'
            )

    def _heights(self) -> Sequence[float]:
        first, length = self._upwards.first, self._upwards.length
        if self._log_y:
            return [10.0 ** (first + step) for step in range(round(length) + 1)]
        return [first + length * step / 4 for step in range(5)]


def _powers(least: float, most: float) -> _Axis:
    return _Axis(floor(log10(least)), ceil(log10(most)))


def _round_up(value: float) -> float:
    """Return the next number of one digit, twice or half of it."""
    unit = 10.0 ** floor(log10(value))
    return next(step * unit for step in (1, 2, 4, 6, 8, 10) if step * unit >= value)


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Return where labels stand: at the ends of their curves, and none on another."""
    placed: dict[str, float] = {}
    last = -float(_LABEL)
    for name, y in sorted(ends.items(), key=lambda end: end[1]):
        placed[name] = last = max(y, last + _LABEL)
    return placed


def _whose(name: str, own: str) -> str:
    return "own" if name.startswith(own) else "other"


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f'<text x="8" y="20" class="title">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
