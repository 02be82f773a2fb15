"""What every message of a stream must be, checked while it flows. Both ends of an edge can use it."""

import zlib

import numpy as np

INT32 = np.dtype(np.int32)  # made once: to compare with the type itself would make it anew for each message


class ContractError(ValueError):
    """A message breaks the contract; `rule` names the line of it that is broken."""

    def __init__(self, rule, text):
        super().__init__(text)
        self.rule = rule


class StreamGuard:
    """Checks the messages of one stream against the contract: one new id each, in order, up to one end mark.

    The rules, in the order in which they are checked: "dtype" INT32, "rank" 1, "length" 1, "vocabulary" (the id is one
    that the tokenizer has), "stream" (all messages carry one stream id), "index" (1, 2, 3, ...), "end" (nothing comes
    after the end mark), "checksum" (the ids are those that the model made, no more and no fewer). A stream that broke
    one stays broken: what comes after is refused for the same reason.
    """

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary
        self.stream_id = None
        self.index = 0
        self.ended = False
        self.checksum = 0
        self.broken = None

    def check(self, ids, index, stream_id, end, checksum):
        """Take the next message of the stream; raise a `ContractError` at the first rule that it breaks.

        `ids` is an array, `checksum` the CRC-32 of all ids of the stream so far, taken where they were made.
        """
        self.broken = self.broken or self._tensor(ids) or self._place(index, stream_id) or self._content(ids, checksum)
        if self.broken:
            rule, text = self.broken
            kept = f"{self.index} message(s) of the stream kept the contract"
            raise ContractError(rule, f"{kept}; the next one does not ({rule}): {text}")
        self.index, self.stream_id, self.ended = index, stream_id, end

    def finish(self):
        """Say that no more messages come; a `ContractError` if the last one had no end mark."""
        if not self.ended:
            raise ContractError("end", f"the stream has {self.index} message(s), and none has the end mark (end)")

    def _tensor(self, ids):
        if ids.dtype != INT32:
            return "dtype", f"TOKEN_IDS is {ids.dtype}; expected int32"
        if ids.ndim != 1:
            return "rank", f"TOKEN_IDS has dims {list(ids.shape)}; expected [1]"
        if len(ids) != 1:
            return "length", f"TOKEN_IDS holds {len(ids):,} ids; expected 1"
        if not 0 <= (one := int(ids[0])) < self.vocabulary:
            return "vocabulary", f"id {one} is not in the vocabulary (0 to {self.vocabulary - 1:,})"
        return None

    def _place(self, index, stream_id):
        if stream_id != self.stream_id and self.stream_id is not None:
            return "stream", f"STREAM_ID is {stream_id}; the stream began with {self.stream_id}"
        if index != self.index + 1:
            return "index", f"INDEX is {index}; expected {self.index + 1}"
        if self.ended:
            return "end", "it comes after the end mark"
        return None

    def _content(self, ids, checksum):
        self.checksum = zlib.crc32(ids, self.checksum)
        if checksum != self.checksum:
            return "checksum", "its ids are not those that the model made"
        return None
