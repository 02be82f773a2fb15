"""What the graph of an ensemble shows, read back from the artists and compared as it is rendered, in inches."""

from itertools import combinations, pairwise, product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.transforms import Bbox

from lab_utils.contract import CLIENT, Edge, read_edges
from lab_utils.graph import HEAD, KEY, graph_figure
from lab_utils.plots import OKABE_ITO

HAIR = 0.01  # inches: about half the width of a line


def edge(tensor: str, producer: str, consumer: str, produced=(1,), accepted=None, per_response: bool = False) -> Edge:
    """Return an INT32 edge whose ends agree, unless told otherwise; dims of None are unknown."""
    ends = produced, produced if accepted is None else accepted
    return Edge(tensor, producer, consumer, "INT32", *(dims and tuple(dims) for dims in ends), per_response)


def chain(*models: str) -> list[Edge]:
    """Return one edge from each model to the next, and to and from the client."""
    ends = pairwise((CLIENT, *models, CLIENT))
    return [edge(f"TENSOR_{number}", *pair, produced=(-1, 80)) for number, pair in enumerate(ends)]


STEPS = [f"step_{number}" for number in range(1, 12)]
BRANCHES = [
    edge("IMAGE", CLIENT, "decode", (-1,)),
    edge("PIXELS", "decode", "resize", (3, -1, -1)),
    edge("PIXELS", "decode", "embed", (3, -1, -1)),
    edge("SMALL", "resize", "detect", (3, 640, 640)),
    edge("VECTOR", "embed", "classify", (768,)),
    edge("BOXES", "detect", "suppress", (-1, 4)),
    edge("SCORES", "detect", "suppress", (-1,)),
    edge("KEPT", "suppress", "merge", (-1,), (1,)),
    edge("CLASS", "classify", "merge"),
    edge("FACTS", "merge", "template", (-1,)),
    edge("PROMPT_IDS", "template", "generate", (-1,)),
    edge("TOKEN_IDS", "generate", "decode_ids", (-1,), (1,), per_response=True),
    edge("TEXT", "decode_ids", CLIENT, per_response=True),
]
CROSSING = [
    *chain(*STEPS[:9]),
    *(edge("CONFIG", CLIENT, step, (-1,)) for step in STEPS[2:8:2]),
    edge("MASK", "step_2", "step_6"),
    edge("OTHER_MASK", "step_4", "step_8"),
    edge("LOG", "step_3", CLIENT),
]
GRAPHS = {
    "ensemble_append": read_edges("ensemble_append"),
    "ensemble_latest": read_edges("ensemble_latest"),
    "chain of 12": chain(*STEPS[:10]),
    "branches": BRANCHES,
    "crossing": CROSSING,
    "one model": chain("model"),
    "unknown dims": [*chain("a", "b"), edge("X", "a", "b", None), edge("Y", "a", CLIENT, None, (1,))],
    "a model in two steps": chain("resize (step 1)", "detect", "resize (step 3)"),
    "long names": chain(*(f"a_rather_long_name_of_a_model_{number}" for number in range(5))),
    "passed through": [edge("ECHO", CLIENT, CLIENT)],
    "both kinds": [*chain("a", "b"), edge("X", "a", "b", per_response=True), edge("Y", "a", CLIENT, per_response=True)],
    "both kinds passed through": [edge("X", CLIENT, CLIENT), edge("Y", CLIENT, CLIENT, per_response=True)],
    "tall above": [*chain("a", "b"), *(edge(name, "a", "b") for name in "ABCDEF")],
    "tall below": [*chain("a", "b"), *(edge(name, CLIENT, "b") for name in "ABCDEF")],
    "tall into one box": [*chain("a", "b", "c"), edge("X", "a", "c"), *(edge(30 * n, CLIENT, "c") for n in "ABCD")],
    "tall fan out": [*chain("a", "b", "c"), edge("X", "a", "c"), *(edge(n, "b", m) for n in "ABCD" for m in "cdefg")],
    "both kinds below": [*chain("a", "b"), edge("X", "a", CLIENT, per_response=True), edge("Y", "a", CLIENT)],
    "many skips": [*chain(*STEPS), *(edge(f"OPTION_{step}", CLIENT, step) for step in STEPS)],
}


def drawn(figure: Figure) -> SimpleNamespace:
    """Return what the figure shows: the page, boxes and their names from the left, texts, labels, arrows and marks."""
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()

    def place(artist: Artist) -> Bbox:
        return upright(artist.get_window_extent(renderer).transformed(axes.transData.inverted()))

    texts = [(place(text), " ".join(text.get_text().split())) for text in axes.texts]
    nodes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    boxes = sorted((Bbox.from_bounds(*node.get_bbox().bounds) for node in nodes), key=lambda box: box.x0)
    return SimpleNamespace(
        page=upright(axes.viewLim),
        boxes=boxes,
        names=[next(text for spot, text in texts if box.contains(*middle(spot))) for box in boxes],
        texts=texts,
        labels=[text for _, text in texts if text.endswith(("]", "?"))],
        arrows=[line for line in axes.lines if line.get_marker() in ("v", ">")],
        samples=[line for line in axes.lines if line.get_marker() == "None"],
        marks=[place(patch) for patch in axes.patches if type(patch) is Rectangle],
    )


def upright(box: Bbox) -> Bbox:
    return Bbox([[box.xmin, box.ymin], [box.xmax, box.ymax]])


def middle(box: Bbox) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def overlap(one: Bbox, other: Bbox) -> bool:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > 0 and down > 0


def parts(arrow: Line2D) -> list[Bbox]:
    """Return the two straight parts of an arrow."""
    return [upright(Bbox(pair)).padded(HAIR) for pair in pairwise(arrow.get_xydata())]


def cross(one: Line2D, other: Line2D) -> bool:
    return any(overlap(*pair) for pair in product(parts(one), parts(other)))


def ends(arrow: Line2D, boxes: list[Bbox]) -> tuple[int, int]:
    """Return the numbers of the boxes at whose borders an arrow starts and ends."""
    start, _, (x, y) = arrow.get_xydata()
    tip = (x, y + HEAD / 2) if arrow.get_marker() == "v" else (x + HEAD / 2, y)
    return touched(start, boxes), touched(tip, boxes)


def touched(point: tuple[float, float], boxes: list[Bbox]) -> int:
    at = Bbox([point, point]).padded(HAIR)
    (found,) = (
        number for number, box in enumerate(boxes) if overlap(at, box) and not box.padded(-HAIR).contains(*point)
    )
    return found


def check_places(edges: list[Edge]) -> None:
    """Require that nothing leaves the page or covers anything else; lines may cross lines."""
    seen = drawn(graph_figure(edges, "A title"))
    for spot in [*(spot for spot, _ in seen.texts), *seen.boxes]:
        assert seen.page.x0 <= spot.x0 < spot.x1 <= seen.page.x1
        assert seen.page.y0 <= spot.y0 < spot.y1 <= seen.page.y1
    # Arrows touch the border of a box, and must stay clear of texts.
    things = [(box.padded(-4 * HAIR), name) for box, name in zip(seen.boxes, seen.names, strict=True)]
    things += [(spot, text) for spot, text in seen.texts if text not in seen.names]
    for (one, name), (other, other_name) in combinations(things, 2):
        assert not overlap(one, other), f"{name} and {other_name} overlap"
    for part, (spot, name) in product((part for arrow in seen.arrows for part in parts(arrow)), things):
        assert not overlap(part.padded(2 * HAIR), spot), f"an arrow runs through {name}"


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_covers_anything_else(name):
    check_places(GRAPHS[name])


@st.composite
def graphs(draw) -> list[Edge]:
    """Return edges between up to 9 models, always forwards, with names and dims of any length."""
    models = [CLIENT, *(f"m{number}" for number in range(draw(st.integers(1, 9)))), CLIENT]
    pairs = st.tuples(*[st.integers(0, len(models) - 1)] * 2).filter(lambda pair: pair[0] < pair[1])
    dims = st.lists(st.integers(-1, 9).filter(bool), min_size=1, max_size=3)
    tensors = st.tuples(st.text("ABC_$", min_size=1, max_size=12), pairs, dims, dims, st.booleans())
    chosen = draw(st.lists(tensors, min_size=1, max_size=20))
    return [edge(name, models[a], models[b], one, two, often) for name, (a, b), one, two, often in chosen]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(graphs())
def test_nothing_covers_anything_else_in_any_graph(edges):
    check_places(edges)


@pytest.mark.parametrize("name", GRAPHS)
def test_one_arrow_goes_from_each_producer_to_each_of_its_consumers(name):
    edges, seen = GRAPHS[name], drawn(graph_figure(GRAPHS[name]))
    shown = [[seen.names[end] for end in ends(arrow, seen.boxes)] for arrow in seen.arrows]
    wanted = {(one.producer, one.consumer, one.per_response) for one in edges}
    assert sorted(shown) == sorted([producer, consumer] for producer, consumer, _ in wanted)
    assert all(source < target for source, target in (ends(arrow, seen.boxes) for arrow in seen.arrows))
    assert len(seen.labels) == len(edges)


def test_the_ensemble_shows_each_tensor_and_nothing_more():
    seen = drawn(graph_figure(read_edges("ensemble_append"), "The pipeline"))
    assert seen.names == [CLIENT, "preprocess", "inference", "postprocess", CLIENT]
    assert sorted(text for _, text in seen.texts) == sorted(
        [
            *("The pipeline", *KEY.values(), *seen.names),
            *("PROMPT STRING [1]", "PROMPT_IDS INT32 [-1]", "MAX_TOKENS INT32 [1]", "FORCED_IDS INT32 [-1]"),
            *("TOKEN_IDS INT32 [-1]", "STREAM_ID INT64 [1]", "END BOOL [1]"),
            *("INDEX INT32 [1]", "END BOOL [1]", "HEAP INT64 [1]", "ERROR STRING [1]"),
            *("TEXT STRING [1]", "RECEIVED_IDS INT32 [-1]", "RECEIVED_DIMS INT64 [-1]"),
        ]
    )
    assert len(seen.arrows) == 6


def test_a_label_stands_by_its_arrow():
    seen = drawn(graph_figure(BRANCHES))
    for spot, text in seen.texts:
        near = [arrow for arrow in seen.arrows if any(overlap(part, spot.padded(0.13)) for part in parts(arrow))]
        of = {(one.producer, one.consumer) for one in BRANCHES if text.startswith(f"{one.tensor} ")}
        shown = {tuple(seen.names[end] for end in ends(arrow, seen.boxes)) for arrow in near}
        assert not of or of & shown, text


def test_nodes_stand_from_left_to_right_by_depth():
    seen = drawn(graph_figure(BRANCHES[::-1]))
    depth = [CLIENT, "decode", "resize embed", "detect classify", "suppress", "merge", "template", "generate"]
    groups = [group.split() for group in [*depth, "decode_ids", CLIENT]]
    assert len(seen.names) == sum(map(len, groups)) == 12
    for group in groups:
        assert sorted(seen.names[: len(group)]) == sorted(group)
        del seen.names[: len(group)]


def test_the_client_stands_at_both_ends_whatever_the_models_do():
    edges = [*chain("middle"), edge("A", "source", "filter"), edge("B", "filter", "sink")]
    names = drawn(graph_figure(edges)).names
    assert names[0] == names[-1] == CLIENT
    assert sorted(names[1:-1]) == ["filter", "middle", "sink", "source"]


def test_arrows_once_per_response_look_different_and_the_key_says_so():
    seen = drawn(graph_figure(read_edges("ensemble_append")))
    looks = {}
    for arrow in seen.arrows:
        pair = tuple(seen.names[end] for end in ends(arrow, seen.boxes))
        (often,) = {one.per_response for one in GRAPHS["ensemble_append"] if (one.producer, one.consumer) == pair}
        looks.setdefault(often, set()).add((arrow.get_linestyle(), arrow.get_color()))
    samples = {(line.get_linestyle(), line.get_color()) for line in seen.samples}
    assert [len(look) for look in looks.values()] == [1, 1]
    assert looks[False] | looks[True] == samples
    (once, black), (often, blue) = *looks[False], *looks[True]
    assert (once, often) == ("-", "--")
    assert (black, blue) == (OKABE_ITO["black"], OKABE_ITO["blue"])


def test_the_key_has_only_what_is_drawn():
    texts = [text for _, text in drawn(graph_figure(chain("model"))).texts]
    assert KEY[False] in texts
    assert KEY[True] not in texts


def test_dims_that_differ_show_both():
    seen = drawn(graph_figure([edge("IDS", "a", "b", (-1,), (1,)), edge("X", "a", "b", (-1, 3), (4, -1, 3))]))
    assert seen.labels == ["IDS INT32 [-1] -> [1]", "X INT32 [-1, 3] -> [4, -1, 3]"]


def test_unknown_dims_are_a_question_mark():
    figure = graph_figure([edge("X", "a", "b", None), edge("Y", "a", "b", None, (1,)), edge("Z", "a", "b", (-1,), ())])
    texts = [text for _, text in drawn(figure).texts]
    assert {"X INT32 ?", "Y INT32 ? -> [1]", "Z INT32 [-1] -> []"} <= set(texts)


def test_every_open_dim_is_marked_and_no_other():
    edges = [edge("A-1", "a", "b", (-1, 1, -10)), edge("B", "a", "b", (8, -1), (1, -1)), edge("C", "a", CLIENT, (1,))]
    figure = graph_figure(edges)
    seen = drawn(figure)
    found = []
    for mark, text in product(seen.marks, figure.axes[0].texts):
        spot = next(spot for spot, shown in seen.texts if shown == " ".join(text.get_text().split()))
        if overlap(mark, spot):
            character = (spot.x1 - spot.x0) / len(text.get_text())
            start = (mark.x0 - spot.x0) / character
            found.append((text.get_text()[0], round(start), text.get_text()[round(start) :][:2]))
            assert start == pytest.approx(round(start), abs=0.3)
    assert len(found) == len(seen.marks) == 3
    assert [(name, marked) for name, _, marked in found] == [("A", "-1"), ("B", "-1"), ("B", "-1")]


@pytest.mark.parametrize("name", ["ensemble_append", "ensemble_latest", "chain of 12", "branches", "crossing"])
def test_it_is_readable_at_the_width_of_a_notebook(name):
    figure = graph_figure(GRAPHS[name])
    assert 10.5 <= figure.get_figwidth() <= 11
    assert min(text.get_fontsize() for text in figure.axes[0].texts) >= 9


def test_a_graph_too_long_for_a_page_is_no_wider_than_its_boxes_need():
    assert graph_figure(chain(*(f"step_{number}" for number in range(40)))).get_figwidth() < 20


@pytest.mark.parametrize(
    "name", ["ensemble_append", "chain of 12", "branches", "both kinds", "both kinds below", "many skips"]
)
def test_lines_do_not_cross_where_they_need_not(name):
    arrows = drawn(graph_figure(GRAPHS[name])).arrows
    assert not any(cross(*pair) for pair in combinations(arrows, 2))


def test_arrows_that_must_cross_are_shared_out_above_and_below():
    # Each of these five crosses the four others. With three on one side and two on the other, four crossings are left.
    arrows = drawn(graph_figure([edge("X", f"from_{n}", f"to_{n}") for n in range(5)])).arrows
    assert sum(cross(*pair) for pair in combinations(arrows, 2)) == 4


def test_a_tensor_that_goes_to_two_inputs_of_one_model_is_shown_once():
    assert drawn(graph_figure([edge("X", "a", "b"), edge("X", "a", "b")])).labels == ["X INT32 [1]"]


def test_a_long_title_is_wrapped_and_signs_stand_as_they_are():
    title = "What each step of this ensemble takes and gives " * 4 + "for $1 and $2"
    seen = drawn(graph_figure([edge("$A$", CLIENT, "m$"), edge("B", "m$", CLIENT)], title))
    lines = [text for spot, text in seen.texts if spot.y1 < seen.boxes[0].y0]
    assert " ".join(lines).startswith(" ".join(title.split()))
    assert all(spot.x1 <= seen.page.x1 for spot, _ in seen.texts)
    assert not any(text.get_parse_math() for text in graph_figure(chain("$m$"), title).axes[0].texts)


def test_no_edges_are_refused():
    with pytest.raises(ValueError, match="edges is empty"):
        graph_figure([])


def test_a_cycle_is_refused_and_named():
    edges = [edge("A", CLIENT, "one"), edge("B", "one", "two"), edge("C", "two", "one"), edge("D", "two", CLIENT)]
    with pytest.raises(ValueError, match=r"cycle: (one -> two -> one|two -> one -> two)"):
        graph_figure(edges)


def test_a_model_that_feeds_itself_is_refused():
    with pytest.raises(ValueError, match="cycle: one -> one"):
        graph_figure([edge("A", "one", "one")])
