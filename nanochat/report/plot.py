"""Line plots as inline SVG text: axes, grid, a legend, nothing that needs a script or a file.

The attributes make a plot readable on its own; a page recolours it (classes `s0`, `s1`, ...) for light and dark.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 16, 40
COLOURS = ("#2563c9", "#c2571a")
MAX_POINTS = 600
"""More points than this are averaged in buckets: a plot is 640 pixels wide."""


@dataclass(frozen=True)
class Series:
    """One curve. `faint` draws the measured points behind a smoothed curve."""

    label: str
    points: tuple[tuple[int, float], ...]
    faint: bool = False


def plot_lines(series: Sequence[Series], title: str, x_label: str) -> str:
    """Draw the curves into one `<svg>`; curves without points are left out. No points at all gives ""."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 8), ticks(min(ys), max(ys), 5)
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    name, look = html.escape(title), 'font-size="12" fill="#808890" role="img"'
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {look} aria-label="{name}">', f"<title>{name}</title>"]
    for tick in y_ticks:
        y, ends = place_y(tick), f'x1="{LEFT}" x2="{WIDTH - RIGHT}"'
        parts.append(f'<line class="grid" stroke="#d0d4d8" {ends} y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(f'<text x="{place_x(tick):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{tick:,.10g}</text>')
    centre = (LEFT + WIDTH - RIGHT) // 2
    parts.append(f'<text x="{centre}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(x_label)}</text>')
    colours: dict[str, int] = {}
    for line in series:
        colour = colours.setdefault(line.label, len(colours))
        points, paint = thin(line.points), COLOURS[colour % len(COLOURS)]
        kind, opacity = (f"s{colour} faint", 0.35) if line.faint else (f"s{colour}", 1)
        if len(points) == 1:
            ((x, y),) = points
            parts.append(f'<circle class="{kind}" fill="{paint}" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3"/>')
            continue
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        style = f'fill="none" stroke="{paint}" stroke-opacity="{opacity}"'
        parts.append(f'<polyline class="{kind}" {style} points="{path}"/>')
    for label, colour in colours.items():
        y = TOP + 8 + 18 * colour
        paint, ends = COLOURS[colour % len(COLOURS)], f'x1="{WIDTH - RIGHT - 24}" x2="{WIDTH - RIGHT - 4}"'
        parts.append(f'<line class="s{colour}" stroke="{paint}" {ends} y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT - 30}" y="{y + 4}" text-anchor="end">{html.escape(label)}</text>')
    parts.append("</svg>")
    return "\n".join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers about `count` apart that enclose [low, high]; at least two.

    >>> ticks(0.13, 3.9, 4)
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    size = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= count)
    first, last = math.floor(low / size), math.ceil(high / size)
    if first == last:
        last += 1
    return [float(f"{index * size:.12g}") for index in range(first, last + 1)]


def thin(points: Sequence[tuple[int, float]], limit: int = MAX_POINTS) -> tuple[tuple[int, float], ...]:
    """Average neighbours until at most `limit` points are left; the last step stays the last."""
    if len(points) <= limit:
        return tuple(points)
    size = math.ceil(len(points) / limit)
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((bucket[-1][0], sum(y for _, y in bucket) / len(bucket)) for bucket in buckets)


def smooth(points: Sequence[tuple[int, float]], share: float = 0.01) -> tuple[tuple[int, float], ...]:
    """Exponential mean over about `share` of the points, without the bias towards the first one.

    >>> smooth([(0, 2.0), (1, 2.0), (2, 2.0)])
    ((0, 2.0), (1, 2.0), (2, 2.0))
    """
    keep = 1 - 1 / max(1.0, share * len(points))
    total, weight, smoothed = 0.0, 0.0, []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        smoothed.append((x, total / weight))
    return tuple(smoothed)
