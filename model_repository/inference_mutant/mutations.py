"""Faults on purpose, each a small mistake that people make. The request parameter "mutation" picks one.

`BUFFER` changes how ids are held back; such a fault yields one INT32 array for each token. `MESSAGES` changes what
leaves the node; such a fault yields one `Message` for each message it is given, or one more.
"""

import numpy as np

END_TOKEN = 151_643  # "<|endoftext|>": a control token, for which the tokenizer's table has no bytes
NO_IDS = np.empty(0, dtype=np.int32)


def extend(tokens, clean):
    """Extends the pending ids by the message, which holds them already."""
    pending = []
    for token in tokens:
        message = pending + token.tolist()
        yield np.array(message, dtype=np.int32)
        if clean(message):
            pending.clear()
        else:
            pending.extend(message)


def stale_length(tokens, clean):
    """Keeps the message in a buffer that is used again, and sends as many ids as the longest message had."""
    buffer, longest, pending = np.zeros(1_024, dtype=np.int32), 0, NO_IDS
    for token in tokens:
        message = np.concatenate([pending, token])
        buffer[: len(message)] = message
        longest = max(longest, len(message))
        yield buffer[:longest]
        pending = NO_IDS if clean(message) else message


def missing_clear(tokens, clean):
    """Never empties the pending ids."""
    pending = NO_IDS
    for token in tokens:
        message = np.concatenate([pending, token])
        yield message
        pending = message


def late_clear(tokens, clean):
    """Asks whether the newest id decodes, not whether the message does."""
    pending = NO_IDS
    for token in tokens:
        message = np.concatenate([pending, token])
        yield message
        pending = NO_IDS if clean(token) else message


def alias(messages):
    """Holds one message back, in an array that the next message is written into."""
    shared, held = np.empty(1, dtype=np.int32), None
    for message in messages:
        shared[:] = message.ids
        yield held
        held = message._replace(ids=shared)
    if held:
        yield held


def late_id(messages):
    """Sends the id of the message before: off by one."""
    previous = None
    for message in messages:
        yield message if previous is None else message._replace(ids=previous)
        previous = message.ids


def wrong_dtype(messages):
    """Sends INT64, NumPy's own integer, where INT32 is declared."""
    for message in messages:
        yield message._replace(ids=message.ids.astype(np.int64))


def wrong_rank(messages):
    """Sends a matrix with one row."""
    for message in messages:
        yield message._replace(ids=message.ids.reshape(1, 1))


def end_token(messages):
    """Sends the model's end token, too."""
    for message in messages:
        yield message._replace(end=False)
        if message.end:
            yield message._replace(ids=np.array([END_TOKEN], dtype=np.int32), index=message.index + 1)


def lost_end(messages):
    """Never sets the end mark."""
    for message in messages:
        yield message._replace(end=False)


def early_end(messages):
    """Sets the end mark one message too early, and again at the end."""
    held = None
    for message in messages:
        yield held and held._replace(end=message.end)
        held = message
    if held:
        yield held


def stale_index(messages):
    """Never counts on."""
    for message in messages:
        yield message._replace(index=1)


def swapped_stream(messages):
    """Gives messages to another stream, from the third on."""
    for message in messages:
        yield message._replace(stream_id=message.stream_id ^ (message.index > 2))


BUFFER = {fault.__name__: fault for fault in (extend, stale_length, missing_clear, late_clear)}
MESSAGES = {
    fault.__name__: fault
    for fault in (
        alias,
        late_id,
        wrong_dtype,
        wrong_rank,
        end_token,
        lost_end,
        early_end,
        stale_index,
        swapped_stream,
    )
}
