"""Line charts as SVG: small, styled by the page's own colors, legible without color."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 30
_MOST_POINTS = 300  # of a line; more would not be seen
_MARKERS = 40  # a line of at most so many points has markers

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve; ``style`` chooses color, dashes and marker."""

    label: str
    points: Sequence[Point]
    style: int = 0
    is_strong: bool = False  # thick with markers, else thin


@dataclass(frozen=True)
class Chart:
    """What is drawn over a common axis."""

    title: str
    lines: Sequence[Line]
    bands: Sequence[Sequence[tuple[float, float, float]]] = ()  # each of (x, low, high)
    levels: Sequence[tuple[float, str]] = ()  # horizontal lines with what they mean
    is_percent: bool = False
    from_zero: bool = False
    x_label: str = "updates"


@dataclass
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    first: float
    last: float
    is_log: bool = False
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        low, high = self._scale(self.low), self._scale(self.high)
        share = (self._scale(value) - low) / (high - low)
        return self.first + min(max(share, -0.05), 1.05) * (self.last - self.first)

    def _scale(self, value: float) -> float:
        return math.log10(max(value, 1e-30)) if self.is_log else value


def draw(chart: Chart) -> str:
    """Return the chart as an ``svg`` element."""
    lines = [Line(line.label, _thin(line.points), line.style, line.is_strong) for line in chart.lines]
    x, y = _make_axes(chart, lines)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_describe(chart))}">',
        *_draw_grid(x, y, is_percent=chart.is_percent, x_label=chart.x_label),
    ]
    for band in chart.bands:
        upper = [f"{x(step):.1f},{y(high):.1f}" for step, _, high in band]
        lower = [f"{x(step):.1f},{y(low):.1f}" for step, low, _ in reversed(band)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
    for value, meaning in chart.levels:
        if y.low <= value <= y.high:
            at = y(value)
            parts.append(f'<path class="level" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(
                f'<text class="small" x="{WIDTH - _RIGHT}" y="{at - 3:.1f}" text-anchor="end">{meaning}</text>'
            )
    for line in lines:
        parts += _draw_line(line, x, y, chart)
    return "".join([*parts, "</svg>"])


def histogram(counts: Sequence[int], edges: Sequence[float], unit: str, label: str) -> str:
    """Return bars of how many fall between the edges, as an ``svg`` element."""
    x = _Axis(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT, ticks=_ticks(edges[0], edges[-1]))
    y = _Axis(0, max(counts) * 1.05, HEIGHT - _BOTTOM, _TOP, ticks=_ticks(0, max(counts)))
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    parts += _draw_grid(x, y, x_label=unit)
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        left, top = x(low), y(count)
        title = f"<title>{count} from {show(low)} to {show(high)} {unit}</title>"
        size = f'width="{max(x(high) - left - 1, 0.5):.1f}" height="{HEIGHT - _BOTTOM - top:.1f}"'
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{top:.1f}" {size}>{title}</rect>')
    return "".join([*parts, "</svg>"])


def show(value: float, *, is_percent: bool = False) -> str:
    """Return a number of at most four figures."""
    if is_percent:
        return f"{100 * value:.3g} %"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"


def _describe(chart: Chart) -> str:
    ends = [f"{line.label} ends at {show(line.points[-1][1], is_percent=chart.is_percent)}" for line in chart.lines]
    return f"{chart.title}: {'; '.join(ends)}"


def _thin(points: Sequence[Point]) -> list[Point]:
    """Keep the lowest and the highest of each stretch of a long curve, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    length = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: set[Point] = {points[0], points[-1]}
    for first in range(0, len(points), length):
        stretch = points[first : first + length]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(kept)


def _make_axes(chart: Chart, lines: Sequence[Line]) -> tuple[_Axis, _Axis]:
    steps = [step for line in lines for step, _ in line.points] + [row[0] for band in chart.bands for row in band]
    values = [value for line in lines for _, value in line.points]
    shown = sorted(values + [end for band in chart.bands for _, *ends in band for end in ends])
    x = _Axis(0, max(steps) or 1, _LEFT, WIDTH - _RIGHT, ticks=_ticks(0, max(steps) or 1))
    low, high = shown[0], shown[-1]
    is_log = low > 0 and high > 20 * shown[len(shown) // 2] and not chart.from_zero
    if is_log:
        ticks = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        return x, _Axis(low * 0.9, high * 1.1, HEIGHT - _BOTTOM, _TOP, is_log=True, ticks=ticks)
    if chart.from_zero and low >= 0:
        low = 0.0
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin * (low != 0), high + margin
    return x, _Axis(low, high, HEIGHT - _BOTTOM, _TOP, ticks=_ticks(low, high))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four or five of them."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _draw_grid(x: _Axis, y: _Axis, *, is_percent: bool = False, x_label: str = "updates") -> list[str]:
    parts = []
    for tick in y.ticks:
        if y.low <= tick <= y.high:
            at = y(tick)
            text = show(tick, is_percent=is_percent)
            parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{text}</text>')
    for tick in x.ticks:
        is_at_end = x(tick) > WIDTH - _RIGHT - 15  # where half of the number would be cut off
        anchor = "end" if is_at_end else "middle"
        parts.append(
            f'<text x="{x(tick):.1f}" y="{HEIGHT - _BOTTOM + 14}" text-anchor="{anchor}">{_short(tick)}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="small" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{x_label}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    return parts


def _short(value: float) -> str:
    return f"{value / 1000:.4g}k" if value >= 10_000 else f"{value:.4g}"


def _draw_line(line: Line, x: _Axis, y: _Axis, chart: Chart) -> list[str]:
    places = [(x(step), y(value)) for step, value in line.points]
    weight = "strong" if line.is_strong else "thin"
    path = "".join(f"{'L' if number else 'M'}{a:.1f} {b:.1f}" for number, (a, b) in enumerate(places))
    parts = [f'<path class="line {weight} s{line.style % 8}" d="{path}"/>']
    if line.is_strong and len(places) <= _MARKERS:
        for (step, value), place in zip(line.points, places, strict=True):
            at = f"{chart.x_label.removesuffix('s')} {step:.6g}"
            title = f"<title>{escape(line.label)}, {at}: {show(value, is_percent=chart.is_percent)}</title>"
            parts.append(f'<path class="mark s{line.style % 8}" d="{marker(line.style, *place)}">{title}</path>')
    return parts


def marker(style: int, x: float, y: float) -> str:
    """Return the path of a run's marker: circle, square, triangle, diamond in turn."""
    r = 3
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {2 * r}h{-2 * r - 2}z",
        f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z",
    )
    return shapes[style % len(shapes)]
