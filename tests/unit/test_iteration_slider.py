"""The slider over iterations: what it shows, and that it follows."""

import pytest

from lab_utils.iteration_slider import in_words, iteration_slider

LENGTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
PNG = b"\x89PNG\r\n\x1a\n"


def test_it_begins_at_the_eighth_message():
    slider, words, picture = iteration_slider(LENGTHS).children
    assert (slider.min, slider.value, slider.max) == (1, 8, 10)
    assert in_words(LENGTHS[:8]) in words.value
    assert bytes(picture.value).startswith(PNG)
    assert picture.width == "1100"


@pytest.mark.parametrize("n", [1, 9, 10])
def test_words_and_picture_follow(n):
    slider, words, picture = iteration_slider(LENGTHS).children
    before = bytes(picture.value)
    slider.value = n
    assert in_words(LENGTHS[:n]) in words.value
    assert bytes(picture.value).startswith(PNG)
    assert bytes(picture.value) != before


@pytest.mark.parametrize(("lengths", "at", "shown"), [([1, 1, 1], 8, 3), ([5], 8, 1), (LENGTHS, 2, 2)])
def test_it_begins_at_the_last_message_of_a_shorter_stream_or_where_it_is_told(lengths, at, shown):
    assert iteration_slider(lengths, at).children[0].value == shown


def test_the_words_have_ids_and_bytes():
    assert in_words([1]) == "message 1: 1 id, 4 B; all so far: 1 id"
    assert in_words([2**n for n in range(20)]) == "message 20: 524,288 ids, 2 MiB; all so far: 1,048,575 ids"


def test_without_a_kernel_a_page_shows_one_line_that_is_the_same_in_each_run():
    shown = [iteration_slider(LENGTHS)._repr_mimebundle_() for _ in range(2)]
    assert [each["text/plain"] for each in shown] == [
        "A slider over iterations 1 to 10. It moves where the notebook runs."
    ] * 2
    assert "application/vnd.jupyter.widget-view+json" in shown[0]


@pytest.mark.parametrize("lengths", [[], [1.5], ["1"], [-1], "12"])
def test_what_is_no_list_of_lengths_is_refused(lengths):
    with pytest.raises(ValueError, match="series 'measured'"):
        iteration_slider(lengths)
