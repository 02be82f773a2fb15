"""What the variants of `postprocess` share: one incremental UTF-8 decoder for each stream, and the response."""

import codecs
import time
from collections import OrderedDict

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_STREAMS = 1_024
IDLE_SECONDS = 60.0  # no call arrives here after a cancellation: what is idle this long is dropped


class StreamTable:
    """One object for each open stream, made on its first use, in a bounded table, oldest use first."""

    def __init__(self, make, clock=time.monotonic):
        self._make, self._clock = make, clock
        self._table = OrderedDict()

    def take(self, stream_id, end):
        """The stream's object. It stays in the table until a message with an end mark takes it."""
        held, _ = self._table.pop(stream_id, None) or (self._make(), None)
        if not end:
            self._table[stream_id] = held, self._clock()
        self._drop_old()
        return held

    def _drop_old(self):
        oldest_allowed = self._clock() - IDLE_SECONDS
        while self._table:
            stream_id, (_, last_use) = next(iter(self._table.items()))
            if len(self._table) <= MAX_STREAMS and last_use >= oldest_allowed:
                return
            del self._table[stream_id]

    def __len__(self):
        return len(self._table)


class Decoders(StreamTable):
    """One incremental UTF-8 decoder for each stream."""

    def __init__(self, clock=time.monotonic):
        super().__init__(lambda: codecs.getincrementaldecoder("utf-8")("replace"), clock)

    def decode(self, stream_id, data, end):
        """Text that is complete after `data`; the start of an unfinished character is held back until `end`."""
        return self.take(stream_id, end).decode(data, final=end)


def response(text, ids, dims, **further):
    """One response: TEXT (STRING, [1]), RECEIVED_IDS (INT32, [-1]), RECEIVED_DIMS (INT64, [rank]), and more texts."""
    texts = {"TEXT": text, **further}
    return pb_utils.InferenceResponse(
        [
            *(
                pb_utils.Tensor(name, np.array([value.encode("utf-8")], dtype=np.object_))
                for name, value in texts.items()
            ),
            pb_utils.Tensor("RECEIVED_IDS", ids),
            pb_utils.Tensor("RECEIVED_DIMS", dims),
        ]
    )
