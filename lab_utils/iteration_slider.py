"""A slider over the iterations of a stream: the growth figure up to the chosen one, and its numbers in words.

It moves only where a kernel runs. A stored notebook shows one line of text in its place, so a figure of the whole
run belongs beneath it.
"""

from collections.abc import Sequence

from ipywidgets import HTML, Image, IntSlider, VBox

from lab_utils.plots import BYTES_PER_ID, format_bytes, growth_figure

FIRST_SHOWN = 8


class IterationSlider(VBox):
    """The slider, the words and the picture that follow it, from top to bottom."""

    def __repr__(self) -> str:
        """What a page without a kernel shows instead; ipywidgets cuts it at 110 characters."""
        return f"A slider over iterations 1 to {self.children[0].max}. It moves where the notebook runs."


def iteration_slider(lengths: Sequence[int], at: int = FIRST_SHOWN) -> IterationSlider:
    """Make a slider that shows the growth of a message up to the chosen iteration.

    Parameters
    ----------
    lengths : sequence of int, shape (n,), n >= 1
        Ids in the messages of iterations 1, 2, 3, ….
    at : int
        The iteration to begin with, 1 to n; a later one counts as n.

    Returns
    -------
    IterationSlider
        A widget; a notebook shows it with ``display(...)``.

    Raises
    ------
    ValueError
        If there are no lengths, or one is not a whole number of ids.
    """
    growth_figure({"measured": lengths})  # refuses what cannot be drawn, before anything is shown
    slider = IntSlider(min(at, len(lengths)), min=1, max=len(lengths), description="iteration n")
    words, picture = HTML(), Image(format="png")

    def follow(_change: object = None) -> None:
        shown = lengths[: slider.value]
        picture.value, size = growth_figure({"measured": shown})._repr_png_()
        picture.width = str(size["width"])
        # Behind the picture, which takes a moment; a screen reader says them when they change.
        words.value = f'<span role="status">{in_words(shown)}</span>'

    follow()
    slider.observe(follow, "value")
    return IterationSlider([slider, words, picture])


def in_words(lengths: Sequence[int]) -> str:
    """Say how large the last of these messages is, in ids and bytes, and how many ids all of them hold."""
    last, so_far = lengths[-1], sum(lengths)
    return f"message {len(lengths)}: {_ids(last)}, {format_bytes(last * BYTES_PER_ID)}; all so far: {_ids(so_far)}"


def _ids(count: int) -> str:
    return f"{count:,} {'id' if count == 1 else 'ids'}"
