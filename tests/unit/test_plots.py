"""Figures and tables: what is drawn, on which axes, with which words."""

import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lab_utils.growth import fit
from lab_utils.plots import OKABE_ITO, growth_figure, table, timeline_figure

LADDER = {
    "1 append": [1, 2, 4, 8, 16, 32, 64, 128],
    "2 release": [1, 2, 4, 8, 16, 32, 64, 128],
    "3 replace": [1, 2, 3, 1, 1, 1, 1, 1],
    "4 latest": [1] * 8,
}
STEPS = [("import", 10.0, 10.42), ("server start", 10.42, 12.02), ("first token", 12.02, 12.025)]


def doubling(n):
    """Return the message lengths of n iterations."""
    return [2**step for step in range(n)]


def lines(axes):
    """Return label to drawn line, without the markers in the margin."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def texts(axes):
    """Return the words written on the axes."""
    return [text.get_text() for text in axes.texts if text.get_text()]


def boxes(figure, artists):
    """Return the place of each artist in pixels, after layout."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def test_both_panels_show_every_value():
    """The same data on a linear and on a log2 axis."""
    figure = growth_figure(LADDER)
    linear, log2 = figure.axes
    for axes in (linear, log2):
        drawn = {label: line.get_ydata().tolist() for label, line in lines(axes).items()}
        assert drawn == LADDER
        assert all(line.get_xdata().tolist() == list(range(1, 9)) for line in lines(axes).values())
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("iteration n", "ids in one message")
        assert axes.get_xlim()[0] < 1
        assert axes.get_xlim()[1] > 8
    assert (linear.get_yscale(), log2.get_yscale()) == ("linear", "log")
    assert log2.yaxis.get_transform().base == 2


@pytest.mark.parametrize("n", [3, 8, 20, 28, 95])
def test_log2_ticks_are_powers_of_two_with_their_size(n):
    """Each tick says 2^e; the second scale says the same in bytes, 4 an id."""
    log2 = growth_figure({"measured": doubling(n)}).axes[1]
    ticks, words = log2.get_yticks(), [label.get_text() for label in log2.get_yticklabels()]
    assert words == [f"$2^{{{int(math.log2(tick))}}}$" for tick in ticks]
    assert 3 <= len(ticks) <= 11
    (size,) = log2.child_axes
    assert size.get_yticks() == pytest.approx(ticks * 4)
    assert size.get_yticklabels()[0].get_text() == "4 B"
    assert "bytes" in size.get_ylabel()


def test_sizes_use_binary_units():
    """At n = 28 the scale ends at 512 MiB."""
    (size,) = growth_figure({"measured": doubling(28)}).axes[1].child_axes
    words = [label.get_text() for label in size.get_yticklabels()]
    assert words == ["4 B", "32 B", "256 B", "2 KiB", "16 KiB", "128 KiB", "1 MiB", "8 MiB", "64 MiB", "512 MiB"]


@pytest.mark.parametrize(("n", "top"), [(8, "100"), (20, "400,000"), (28, "100 million")])
def test_linear_ticks_are_readable_counts(n, top):
    """No exponents: thousands separators, then millions."""
    figure = growth_figure({"measured": doubling(n)})
    figure.draw_without_rendering()
    assert figure.axes[0].get_yticklabels()[-1].get_text() == top


@pytest.mark.parametrize(("n", "last"), [(5, 5), (8, 8), (20, 20), (28, 28)])
def test_iterations_are_counted_from_one_in_whole_numbers(n, last):
    """The first tick is 1, never 0 or a fraction."""
    ticks = growth_figure({"measured": doubling(n)}).axes[0].get_xticks()
    assert ticks[0] == 1
    assert ticks[-1] == last
    assert all(tick == int(tick) for tick in ticks)


def test_the_prediction_is_dashed_and_open_and_the_measurement_filled():
    """The two differ in shape too, and the prediction goes on where the measurement stops."""
    law = fit(doubling(8))
    for axes in growth_figure({"measured": doubling(8)}, law, predict_to=20).axes:
        measured, predicted = lines(axes)["measured"], lines(axes)["predicted"]
        assert predicted.get_ydata().tolist() == doubling(20)
        assert (predicted.get_linestyle(), predicted.get_markerfacecolor()) == ("--", "none")
        assert (measured.get_linestyle(), measured.get_markerfacecolor()) == ("-", measured.get_color())
        assert measured.get_markersize() < predicted.get_markersize()


@pytest.mark.parametrize(("arguments", "last"), [({}, 8), ({"reached": 5}, 8), ({"reached": 12}, 12)])
def test_the_prediction_ends_where_the_data_end(arguments, last):
    """Without predict_to the law is drawn to the last iteration that matters."""
    axes = growth_figure({"measured": doubling(8)}, fit(doubling(8)), **arguments).axes[0]
    assert len(lines(axes)["predicted"].get_xdata()) == last


def test_overlapping_series_stay_tellable_apart():
    """Colour, marker and width differ, and what is drawn later is narrower."""
    drawn = list(lines(growth_figure(LADDER).axes[0]).values())
    for look in ("get_color", "get_marker", "get_linewidth", "get_markersize"):
        assert len({getattr(line, look)() for line in drawn}) == len(LADDER)
    assert {line.get_color() for line in drawn} <= set(OKABE_ITO.values())
    widths, sizes = [line.get_linewidth() for line in drawn], [line.get_markersize() for line in drawn]
    assert widths == sorted(widths, reverse=True)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("law", [None, fit(doubling(8))])
def test_every_series_has_its_label_in_the_margin(law):
    """All labels are there, none on another, inside the figure and outside both panels."""
    figure = growth_figure(LADDER, law)
    linear, log2 = figure.axes
    labels = [text for text in linear.texts if text.get_text()]
    assert sorted(text.get_text() for text in labels) == sorted([*LADDER, *(["predicted"] if law else [])])
    places = boxes(figure, [*labels, log2.yaxis.label, linear.patch])
    for index, place in enumerate(places):
        assert not any(place.overlaps(other) for other in places[index + 1 :])
        assert figure.bbox.x0 <= place.x0 <= place.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= place.y0 <= place.y1 <= figure.bbox.y1


def test_labels_stand_in_the_order_of_the_ends():
    """High ends above low ones; of equal ends the first series is on top."""
    linear = growth_figure(LADDER).axes[0]
    heights = {text.get_text(): text.get_position()[1] for text in linear.texts if text.get_text()}
    assert sorted(heights, key=heights.get, reverse=True) == list(LADDER)
    assert max(heights.values()) <= 1


@pytest.mark.parametrize("n", [20, 28, 95])
def test_markers_do_not_run_into_each_other(n):
    """Neighbouring markers of the widest series keep their distance, and the last point has one."""
    figure = growth_figure({label: doubling(n) for label in LADDER})
    figure.draw_without_rendering()
    line = lines(figure.axes[1])["1 append"]
    first, every = line.get_markevery()
    marked = line.get_xdata()[first::every]
    assert marked[-1] == n
    pixels = figure.axes[1].transData.transform([(x, 1) for x in marked])[:, 0]
    assert np.diff(pixels).min() * 72 / figure.dpi > line.get_markersize()


@pytest.mark.parametrize(
    ("dims", "reached", "words"),
    [
        (doubling(28), 28, "n = 28\n134,217,728 ids\n512 MiB"),
        (doubling(28), 26, "n = 26\n33,554,432 ids\n128 MiB"),
        ([1] * 8, 8, "n = 8\n1 id\n4 B"),
    ],
)
def test_the_reached_iteration_is_pointed_out(dims, reached, words):
    """Iteration, ids and size stand inside the linear panel, with an arrow to the point."""
    figure = growth_figure({"measured": dims}, reached=reached)
    (note,) = [text for text in figure.axes[0].texts if text.get_text().startswith("n = ")]
    assert note.get_text() == words
    assert note.xy == (reached, dims[reached - 1])
    panel, place = boxes(figure, [figure.axes[0], note])
    assert panel.x0 <= place.x0
    assert place.x1 <= panel.x1


def test_reached_may_be_only_predicted():
    """The note then holds the predicted length."""
    figure = growth_figure({"measured": doubling(8)}, fit(doubling(8)), reached=12)
    assert "n = 12\n2,048 ids\n8 KiB" in texts(figure.axes[0])


@pytest.mark.parametrize("dims", [[0, 0, 0], [0, 1, 2], [1]])
def test_zeros_and_single_messages_are_drawn_without_a_warning(dims):
    """A 0 is on the linear axis only; nothing goes to stderr, which a notebook test would compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = growth_figure({"measured": dims})
        figure.draw_without_rendering()
    assert lines(figure.axes[0])["measured"].get_ydata().tolist() == dims
    assert not np.isfinite(figure.axes[1].transData.transform((1, 0))[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"measured": {}}, "1 to 6 series"),
        ({"measured": [1, 2, 4]}, "1 to 6 series"),
        ({"measured": {str(n): [1] for n in range(7)}}, "1 to 6 series"),
        ({"measured": {"a": []}}, "series 'a' is empty"),
        ({"measured": {"a": [1, -1]}}, "series 'a', item 2 is negative"),
        ({"measured": {"a": ["1"]}}, "series 'a', item 1 is a str"),
        ({"measured": {"a": [1.5]}}, "series 'a' holds a fraction"),
        ({"measured": {"a": [1, 2]}, "reached": 3}, "reached is 3"),
        ({"measured": {"a": [1, 2]}, "reached": 0}, "reached is 0"),
        ({"measured": {"a": [1, 2]}, "reached": 1.5}, "reached is 1.5"),
        ({"measured": {"a": [1, 2]}, "predicted": fit([1, 4, 9])}, "nothing to predict from"),
        ({"measured": {"a": [1, 2]}, "predicted": fit([1, 2, 4]), "predict_to": 0}, "n is 0"),
        ({"measured": {"a": [1, 2]}, "predicted": fit([1, 2, 4]), "predict_to": 400}, "'predicted', item 334 is out"),
    ],
)
def test_bad_series_are_refused(arguments, message):
    """The error names the series or the argument."""
    with pytest.raises(ValueError, match=message):
        growth_figure(**arguments)


def test_the_timeline_shows_each_step_its_seconds_and_the_total():
    """Bars start at the earliest start and stand in the given order, the total last."""
    (axes,) = timeline_figure(STEPS).axes
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [pytest.approx(bar) for bar in [(0, 0.42), (0.42, 1.6), (2.02, 0.005), (0, 2.025)]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["import", "server start", "first token", "total"]
    assert texts(axes) == ["0.42 s", "1.60 s", "0.005 s", "2.03 s"]
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "time since start (s)"


def test_the_total_spans_steps_that_overlap():
    """The total is from the first start to the last end, whatever the order and overlap."""
    (axes,) = timeline_figure([("b", 3, 4), ("a", 1, 9)]).axes
    assert texts(axes) == ["1.00 s", "8.00 s", "8.00 s"]


def test_no_label_of_the_timeline_is_clipped():
    """Seconds and step names stand inside the figure."""
    figure = timeline_figure([("a step with quite a long name", 0, 2), *STEPS])
    (axes,) = figure.axes
    for place in boxes(figure, [*axes.texts, *axes.get_yticklabels()]):
        assert figure.bbox.x0 <= place.x0 <= place.x1 <= axes.bbox.x1


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "events is empty"),
        ([("a", 2, 1)], "event 1 is .*the end not before the start"),
        ([("a", 0, 1), ("b", 0, math.nan)], "event 2"),
        ([("a", 0, math.inf)], "event 1"),
        ([("a", 0)], "event 1"),
        ([(1, 0, 1)], "event 1"),
        ([("a", "0", "1")], "event 1"),
    ],
)
def test_bad_events_are_refused(events, message):
    """The error shows the event."""
    with pytest.raises(ValueError, match=message):
        timeline_figure(events)


@pytest.mark.parametrize("figure", [growth_figure(LADDER), timeline_figure(STEPS)])
def test_a_notebook_shows_a_figure_once(figure):
    """As a result it is a PNG with its size; pyplot does not know it and cannot show it again."""
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    data, metadata = DisplayFormatter().format(figure)
    assert set(data) == {"image/png", "text/plain"}
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] == round(figure.get_figwidth() * 100)


def test_a_table_is_aligned_and_readable():
    """Numbers to the right with separators, words to the left, a dash for nothing."""
    rows = [[1, 1, 0.5, "a"], [np.int64(28), 134_217_728, np.float64(1234.567), "b\nc"], [29, None, None, "茶 d"]]
    assert table(["n", "ids", "MiB", "text"], rows).splitlines() == [
        " n          ids       MiB  text",
        "--  -----------  --------  ----",
        " 1            1      0.50  a",
        "28  134,217,728  1,234.57  b\\nc",
        "29            -         -  茶 d",
    ]


def test_a_column_after_chinese_text_stays_in_line():
    """A Chinese character counts for two columns."""
    first, _, second, third = table(["text", "n"], [["茶匙香", 1], ["ab", 2]]).splitlines()
    assert (first, second, third) == ("text    n", "茶匙香  1", "ab      2")


def test_a_table_may_have_no_rows():
    """The header stands alone."""
    assert table(["a", "bc"], []) == "a  bc\n-  --"


@pytest.mark.parametrize(
    ("headers", "rows", "message"),
    [([], [], "headers is empty"), (["a"], [[1], [1, 2]], "row 2 has 2 values; expected one per header: 1")],
)
def test_bad_tables_are_refused(headers, rows, message):
    """The error names the row."""
    with pytest.raises(ValueError, match=message):
        table(headers, rows)
