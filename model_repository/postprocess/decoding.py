"""What the variants of `postprocess` share: what they keep for each stream, and the response."""

import codecs
import json
import time
from collections import OrderedDict
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np
import triton_python_backend_utils as pb_utils
from gauge import StreamGauge
from token_bytes import TokenBytes

MAX_STREAMS = 1_024


class StreamTable:
    """One object for each open stream, made on its first use, in a bounded table, oldest use first.

    A stream leaves with its end mark. After a cancellation no call arrives here: what has been idle for `idle_seconds`
    is dropped by the next use or by `sweep`, whichever comes first.
    """

    def __init__(self, make, idle_seconds, clock=time.monotonic):
        self._make, self._idle_seconds, self._clock = make, idle_seconds, clock
        self._table = OrderedDict()
        self._lock = Lock()

    def take(self, stream_id, end):
        """The stream's object. It stays in the table until a message with an end mark takes it."""
        with self._lock:
            held, _ = self._table.pop(stream_id, None) or (self._make(), None)
            if not end:
                self._table[stream_id] = held, self._clock()
            self._drop_old()
            return held

    def drop(self, stream_id):
        """Forget a stream, if it is known."""
        with self._lock:
            self._table.pop(stream_id, None)

    def sweep(self):
        """Drop what is idle, and say how many streams are left."""
        with self._lock:
            self._drop_old()
            return len(self._table)

    def _drop_old(self):
        oldest_allowed = self._clock() - self._idle_seconds
        while self._table:
            stream_id, (_, last_use) = next(iter(self._table.items()))
            if len(self._table) <= MAX_STREAMS and last_use >= oldest_allowed:
                return
            del self._table[stream_id]

    def __len__(self):
        return len(self._table)


class Sweeper:
    """A thread that sweeps a table from time to time, and keeps the gauge of open streams."""

    def __init__(self, table, seconds, gauge):
        self._table, self._seconds, self._gauge = table, seconds, gauge
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self):
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self):
        while not self._stopped.wait(self._seconds):
            self._gauge.set(self._table.sweep())


class DecodingModel:
    """What every variant has: the token table, and something for each open stream, made by `new_stream`."""

    def initialize(self, args):
        """Load the token table; no stream is open yet."""
        idle = float(json.loads(args["model_config"])["parameters"]["idle_seconds"]["string_value"])
        self.name = args["model_name"]
        self.token_bytes = TokenBytes.load(Path(args["model_repository"]) / "token_bytes.safetensors")
        self.streams = StreamTable(self.new_stream, idle)
        self.sweeper = Sweeper(self.streams, idle / 10, StreamGauge(args))

    def new_stream(self):
        """An incremental UTF-8 decoder."""
        return codecs.getincrementaldecoder("utf-8")("replace")

    def execute(self, requests):
        """One response for each request, in order."""
        return [self.respond(request) for request in requests]

    def finalize(self):
        """End the sweeper."""
        self.sweeper.stop()


def string(text):
    """A STRING tensor's array of one text."""
    return np.array([text.encode("utf-8")], dtype=np.object_)


def response(text, ids, dims, **further):
    """One response: TEXT (STRING, [1]), RECEIVED_IDS (INT32, [-1]), RECEIVED_DIMS (INT64, [rank]), further arrays."""
    outputs = {"TEXT": string(text), "RECEIVED_IDS": ids, "RECEIVED_DIMS": dims, **further}
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])
