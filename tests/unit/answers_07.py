"""Right answers to the exercises of lesson 07, and plausible wrong ones."""

import codecs
import itertools


def new_decoder(errors: str = "replace") -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors)


def text_of(decoders, stream_id, data, end):
    if stream_id not in decoders:
        decoders[stream_id] = new_decoder()
    text = decoders[stream_id].decode(data, final=end)
    if end:
        del decoders[stream_id]
    return text


def with_setdefault(decoders, stream_id, data, end):
    text = decoders.setdefault(stream_id, new_decoder()).decode(data, end)
    if end:
        decoders.pop(stream_id)
    return text


def keeps_bytes(decoders, stream_id, data, end):
    """Without codecs: what does not decode yet is kept as bytes."""
    data = decoders.pop(stream_id, b"") + data
    for cut in range(len(data), max(-1, len(data) - 4), -1):
        try:
            text = data[:cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        if not end and data[cut:]:
            decoders[stream_id] = data[cut:]
        return text + ("\ufffd" if end and data[cut:] else "")
    return data.decode("utf-8", "replace")


VARIANTS = [text_of, with_setdefault, keeps_bytes]


def each_alone(decoders, stream_id, data, end):
    return data.decode("utf-8", "replace")


def one_for_all(decoders, stream_id, data, end):
    return decoders.setdefault("decoder", new_decoder()).decode(data)


def one_for_all_with_end(decoders, stream_id, data, end):
    return decoders.setdefault("decoder", new_decoder()).decode(data, final=end)


def forgets_the_end(decoders, stream_id, data, end):
    return decoders.setdefault(stream_id, new_decoder()).decode(data)


def frees_without_final(decoders, stream_id, data, end):
    text = decoders.setdefault(stream_id, new_decoder()).decode(data)
    if end:
        del decoders[stream_id]
    return text


def never_frees(decoders, stream_id, data, end):
    return decoders.setdefault(stream_id, new_decoder()).decode(data, final=end)


def frees_everything(decoders, stream_id, data, end):
    text = decoders.setdefault(stream_id, new_decoder()).decode(data, final=end)
    if end:
        decoders.clear()
    return text


def always_final(decoders, stream_id, data, end):
    return decoders.setdefault(stream_id, new_decoder()).decode(data, final=True)


def a_new_one_each_time(decoders, stream_id, data, end):
    decoders[stream_id] = new_decoder()
    return decoders[stream_id].decode(data, final=end)


def drops_what_is_broken(decoders, stream_id, data, end):
    text = decoders.setdefault(stream_id, new_decoder("ignore")).decode(data, final=end)
    if end:
        del decoders[stream_id]
    return text


def strict(decoders, stream_id, data, end):
    text = decoders.setdefault(stream_id, new_decoder("strict")).decode(data, final=end)
    if end:
        del decoders[stream_id]
    return text


def all_at_the_end(decoders, stream_id, data, end):
    decoders[stream_id] = decoders.get(stream_id, b"") + data
    return decoders.pop(stream_id).decode("utf-8", "replace") if end else ""


def whole_text_so_far(decoders, stream_id, data, end):
    decoders[stream_id] = decoders.get(stream_id, b"") + data
    text = decoders[stream_id].decode("utf-8", "replace")
    if end:
        del decoders[stream_id]
    return text


ELSEWHERE: dict = {}


def state_elsewhere(decoders, stream_id, data, end):
    return text_of(ELSEWHERE, stream_id, data, end)


def bytes_back(decoders, stream_id, data, end):
    return data


# A wrong function, and what has to be in the words about it.
MISTAKES = {
    each_alone: "decoded by itself",
    one_for_all: "one decoder serves them all",
    one_for_all_with_end: "one decoder serves them all",
    forgets_the_end: "Who forgets a stream",
    frees_without_final: "final=",
    never_frees: "Who forgets a stream",
    frees_everything: "is gone",
    always_final: "decoded by itself",
    drops_what_is_broken: "errors='replace'",
    all_at_the_end: "do not wait for the end mark",
    whole_text_so_far: "decoded by itself",
    strict: "errors='replace'",
    state_elsewhere: "keep all state in `decoders`",
    bytes_back: "it has to return text",
}


def inversions(index):
    return sum(a > b for i, a in enumerate(index) for b in index[i + 1 :])


PLACES = {
    "the KV cache": "inference",
    "the number of the next message": "inference",
    "the ids that were sent": "nowhere",
    "the bytes of a character that is not whole": "postprocess",
}

RIGHT: dict[str, object] = {
    "07-place": PLACES,
    "07-decoder": text_of,
    "07-inversions": inversions,
    "07-credit": 24,
    "07-quiz": ["c", "a", "b"],
}
NEAR_MISSES: dict[str, list[object]] = {
    "07-place": [
        *(PLACES | {name: place} for name in PLACES for place in ("inference", "postprocess", "nowhere", "client")),
        dict.fromkeys(PLACES, "inference"),
        list(PLACES.values()),
        "inference",
    ],
    "07-decoder": [*MISTAKES, "decoder", {8001: "a"}],
    "07-inversions": [
        lambda index: sum(a > b for a, b in itertools.pairwise(index)),
        lambda index: sum(a != b for a, b in zip(index, sorted(index), strict=True)),
        lambda index: sum(a < b for i, a in enumerate(index) for b in index[i + 1 :]),
        lambda index: len(index),
        lambda index: index == sorted(index),
        lambda index: 0,
        lambda index: str(inversions(index)),
        3,
    ],
    "07-credit": [16, 26, 10, 18, 32, 14, 20, 8, "24", [24]],
}
NEAR_MISSES["07-place"] = [answer for answer in NEAR_MISSES["07-place"] if answer != PLACES]
