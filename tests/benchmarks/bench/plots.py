"""Line charts as SVG, from a few shapes: a drawing library would be one more thing to install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 720, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 170, 62, 36  # around the lines; the legend is on the right
# Told apart with any eyes, after Okabe and Ito; the first is for what a chart is about.
_COLOURS = ("#d55e00", "#555555", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
_GOOD_STEPS = (1, 2, 2.5, 5, 10)


class Chart(NamedTuple):
    """One picture.

    Attributes:
        side: What the heights are.
        across: What each place along the bottom stands for, from left to right.
        lines: A height for each of those places, by name; the first is drawn boldest.
    """

    title: str
    side: str
    across: Sequence[str]
    lines: Mapping[str, Sequence[float]]


def svg(chart: Chart) -> str:
    """Return *chart* as the text of an SVG file."""
    marks = _marks(max([height for line in chart.lines.values() for height in line]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(16, 24, chart.title, size=15),
        _text(16, 42, chart.side),
    ]
    for mark in marks:
        y = _y(mark, marks[-1])
        parts.append(_line([(_LEFT, y), (_WIDTH - _RIGHT, y)], "#dddddd", 1))
        parts.append(_text(_LEFT - 8, y + 4, f"{mark:,g}", anchor="end"))
    for place, name in enumerate(chart.across):
        parts.append(_text(_x(place, chart), _HEIGHT - _BOTTOM + 18, name, anchor="middle"))
    for number, (name, heights) in reversed(list(enumerate(chart.lines.items()))):
        parts.extend(_series(number, name, heights, chart, marks[-1]))
    return "\n".join([*parts, "</svg>", ""])


def _series(
    number: int, name: str, heights: Sequence[float], chart: Chart, top: float
) -> list[str]:
    colour, width = _COLOURS[number % len(_COLOURS)], 3.0 if number == 0 else 1.5
    points = [(_x(place, chart), _y(height, top)) for place, height in enumerate(heights)]
    y = _TOP + 8 + 20 * number
    x = _WIDTH - _RIGHT + 16
    return [
        _line(points, colour, width),
        *[f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in points],
        _line([(x, y), (x + 20, y)], colour, width),
        _text(x + 26, y + 4, name),
    ]


def _marks(highest: float) -> list[float]:
    """Return round heights from 0 to one that is not below *highest*, four to eight of them."""
    unit = 10.0 ** len(str(int(highest))) if highest >= 1 else 1.0
    while unit > highest:
        unit /= 10
    step = next(good for n in _GOOD_STEPS if (good := n * unit / 5) * 6 >= highest)
    marks = [0.0]
    while marks[-1] < highest:
        marks.append(round(marks[-1] + step, 10))
    return marks


def _x(place: int, chart: Chart) -> float:
    inner = _WIDTH - _LEFT - _RIGHT
    return _LEFT + inner * (place + 0.5) / len(chart.across)


def _y(height: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * height / top


def _line(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    where = " ".join([f"{x:.1f},{y:.1f}" for x, y in points])
    return f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    what = f'text-anchor="{anchor}" font-family="sans-serif" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {what}>{escape(text)}</text>'
