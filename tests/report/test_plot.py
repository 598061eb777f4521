import re

import pytest

from nanochat.report.plot import HEIGHT, WIDTH, Series, plot_lines, smooth, thin, ticks


def test_a_curve_stays_inside_the_picture_and_falls_where_the_loss_falls() -> None:
    svg = plot_lines([Series("loss", tuple((step, 10 - step) for step in range(10)))], "title", "step")
    points = re.findall(r"([\d.]+),([\d.]+)", re.findall(r'points="([^"]+)"', svg)[0])
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    assert xs == sorted(xs) and ys == sorted(ys)  # y grows downwards
    assert min(xs) >= 0 and max(xs) <= WIDTH and min(ys) >= 0 and max(ys) <= HEIGHT


def test_no_points_give_no_plot() -> None:
    assert plot_lines([Series("loss", ())], "title", "step") == ""


@pytest.mark.parametrize("points", [((5, 1.0),), ((0, 2.0), (1, 2.0)), ((0, 0.0), (1, 0.0)), ((0, -1e-9), (9, 1e12))])
def test_flat_and_extreme_curves_can_be_drawn(points: tuple) -> None:
    assert "nan" not in plot_lines([Series("loss", points)], "title", "step")


def test_labels_are_escaped() -> None:
    svg = plot_lines([Series("<i>", ((0, 1.0), (1, 2.0)))], "<b>", "<u>")
    assert not re.search("<[ibu]>", svg)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 3.9), (2.0, 2.0), (-5, 7), (0, 0), (1e-6, 2e-6), (3, 1e9)])
def test_ticks_enclose_the_values_at_even_distances(low: float, high: float) -> None:
    marks = ticks(low, high, 5)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 8
    gaps = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    assert max(gaps) == pytest.approx(min(gaps))


def test_thinning_keeps_the_mean_and_the_last_step() -> None:
    points = [(step, float(step % 2)) for step in range(10_000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100 and thinned[-1][0] == 9_999
    assert all(y == 0.5 for _, y in thinned)


def test_smoothing_does_not_drag_the_first_value_along() -> None:
    smoothed = smooth([(step, 1.0 if step else 100.0) for step in range(1000)])
    assert smoothed[0] == (0, 100.0) and smoothed[-1][1] == pytest.approx(1.0, abs=1e-6)
