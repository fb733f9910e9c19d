"""Plots: figures stand where they belong, and nothing covers anything."""

import math

import pytest

from distill.pages.chart import Axis, Chart, Curve, Level, Mark, alike
from distill.pages.drawing import BOTTOM, LEFT, RIGHT, TOP
from distill.pages.labels import Label, placed
from distill.pages.scale import Scale, extent


def chart(points, log=False, levels=(), **kind):
    marks = tuple(Mark(x, y, f"{x}, {y}", **more) for x, y, more in ((*point, {})[:3] for point in points))
    return Chart("name", "told", Axis("x"), Axis("y", log=log), (Curve("one", "student", marks, **kind),), levels)


def test_a_scale_puts_figures_in_proportion():
    linear, log = Scale(0, 10, 100, 200, False), Scale(1, 100, 200, 100, True)
    assert [linear(value) for value in (0, 2.5, 10)] == [100, 125, 200]
    assert [log(value) for value in (1, 10, 100)] == [200, 150, 100]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1, 0, 100, False), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Scale(5.31, 5.68, 0, 100, False), [5.4, 5.5, 5.6]),
        (Scale(3, 310, 0, 100, True), [5, 10, 20, 50, 100, 200]),
        (Scale(10, 40, 0, 100, True), [10, 15, 20, 30, 40]),
        (Scale(15.1, 15.6, 0, 100, True), [15.1, 15.2, 15.3, 15.4, 15.5, 15.6]),
    ],
)
def test_ticks_are_easy_to_read(scale, ticks):
    assert [round(tick, 9) for tick in scale.ticks()] == pytest.approx(ticks)


def test_names_of_ticks_do_not_touch_and_the_largest_stays():
    scale = Scale(1, 128, 0, 140, True)  # 20 pixels a doubling
    assert scale.apart([1, 2, 4, 8, 120, 500], lambda _: 30) == [2, 8, 120]


def test_one_figure_has_room_on_both_sides():
    for values, log in (([5.0], False), ([5.0], True), ([0.0], False)):
        low, high = extent(values, log)
        assert low < values[0] < high


def test_marks_stand_in_the_frame_from_left_to_right_and_upward():
    one, other = chart([(1, 10), (2, 20)]).drawing.dots
    assert LEFT < one.x < other.x < RIGHT
    assert TOP < other.y < one.y < BOTTOM


@pytest.mark.parametrize("worst", [math.inf, math.nan, 0.0, -1.0])
def test_what_a_log_axis_can_not_show_is_left_out(worst):
    drawing = chart([(1, 10), (2, worst), (3, 20)], log=True).drawing
    assert len(drawing.dots) == 2
    assert all("nan" not in path.d and "inf" not in path.d for path in drawing.lines)


def test_intervals_are_an_area_or_bars_within_the_frame():
    points = [(1, 10, {"ends": (9, 11)}), (2, 12, {"ends": (1, 500)})]
    assert len(chart(points).drawing.bands) == 1
    assert not chart(points).drawing.bars
    bars = chart(points, band=False).drawing.bars
    assert len(bars) == 2
    assert bars[1].d.endswith(f"V{TOP}.0") or bars[1].d.endswith(f"V{TOP}")


def test_levels_count_for_the_limits():
    drawing = chart([(1, 10), (2, 11)], levels=(Level("real", "real", 3.0), Level("best", "plain", 9.0, True))).drawing
    assert len(drawing.levels) == 2
    assert [key.name for key in drawing.legend] == ["one", "real", "best"]


def test_plots_side_by_side_have_the_same_limits():
    one, other = alike([chart([(1, 10), (2, 20)]), chart([(5, 1), (6, 2)])])
    assert one.limits == other.limits
    assert one.limits[0][0] < 1
    assert one.limits[0][1] > 6


def test_labels_cover_neither_marks_nor_each_other():
    marks = [(100.0, 100.0), (104.0, 101.0), (108.0, 100.0)]
    places = placed([Label(*at, "eight", "student") for at in marks], marks, (48, 36, 446, 252))
    boxes = [(p.x - 16, p.y - 9.5, p.x + 16, p.y + 2.5) for p in places]
    assert len(boxes) >= 2
    for i, a in enumerate(boxes):
        assert not any(a[0] < x < a[2] and a[1] < y < a[3] for x, y in marks)
        assert all(a[2] <= b[0] or a[0] >= b[2] or a[3] <= b[1] or a[1] >= b[3] for b in boxes[:i])
