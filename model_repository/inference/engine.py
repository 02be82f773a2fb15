"""The decoding loop of `inference`: all streams of an instance, moved on together, in one thread.

Only this thread touches a stream once it was handed over: the others put orders into a queue.
"""

import time
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread

import triton_python_backend_utils as pb_utils

LOOK_SECONDS = 0.01  # how often each stream is asked whether its client is still there: the server's answer takes long


class Engine:
    """Decodes for all its streams together, and sends each of them a message an iteration.

    A stream may join at any iteration and leave at any iteration. One that fails, or is cancelled, ends alone.
    """

    def __init__(self, batch, max_waiting, gauge):
        self.batch = batch
        self.max_waiting = max_waiting
        self.gauge = gauge
        self.streams = []
        self._looked = -LOOK_SECONDS
        self._orders = SimpleQueue()  # what other threads ask for, as functions for this thread to call
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self):
        """Start the thread."""
        self._thread.start()

    def stop(self):
        """End the thread, after what was ordered before; a stream that is still open then ends with an error."""
        self._orders.put(None)
        self._thread.join()

    def submit(self, stream):
        """Take a stream in; one too many is refused in-band."""
        self._orders.put(partial(self._admit, stream))

    def refuse(self, stream, error):
        """Answer a stream that was never submitted with an error."""
        self._orders.put(partial(self._close, stream, error))

    def grant(self, answer, key, messages):
        """Let the stream with this window key send more messages; 0 ends it. `answer` is the grant's own stream."""
        self._orders.put(partial(self._grant, answer, key, messages))

    def _run(self):
        going = True
        while going:
            try:
                going = self._turn()
            except Exception as error:  # a fault of the engine itself: nobody may wait for an answer that never comes
                pb_utils.Logger.log_error(f"inference: the engine failed: {type(error).__name__}: {error}")
                self._end_all(error)

    def _turn(self):
        """Carry out what was ordered meanwhile, then one iteration. False once the engine is to stop."""
        for order in self._take_orders():
            if order is None:
                self._end_all(RuntimeError("the model was unloaded"))
                return False
            order()
        self._iterate()
        self.gauge.set(len(self.streams))
        return True

    def _take_orders(self):
        """Yield what was ordered meanwhile. While no stream can move, wait for an order."""
        moving = any(map(self._can_move, self.streams))
        with suppress(Empty):
            yield self._orders.get(block=not moving, timeout=LOOK_SECONDS if self.streams else None)
            while True:
                yield self._orders.get_nowait()

    def _can_move(self, stream):
        if stream.prompt:
            return not self.batch.full
        return not (stream.stalled and stream.tokens.ready)

    def _admit(self, stream):
        if len(self.streams) >= self.batch.size + self.max_waiting:
            taken = f"{self.batch.size} streams are decoded and {self.max_waiting} wait"
            self._close(stream, ValueError(f"the node is full: {taken}; try again later"))
        elif stream.window and self._with_key(stream.window.key):
            self._close(stream, ValueError(f"the window key {stream.window.key} is in use; take another"))
        else:
            self.streams.append(stream)

    def _grant(self, answer, key, messages):
        stream = self._with_key(key)
        if stream is None:
            self._close(answer, ValueError(f"no stream has the window key {key}; it may have ended"))
            return
        if messages:
            stream.window.grant(messages)
        else:
            self._attempt(stream, self._cut)
        self._close(answer)

    def _with_key(self, key):
        return next((one for one in self.streams if one.window and one.window.key == key), None)

    def _iterate(self):
        """Let waiting streams join, decode for those that lack a token, and move every stream on by one message."""
        for stream in [one for one in self.streams if one.prompt]:
            if self.batch.full:
                break
            self._attempt(stream, self._join)
        self._decode({one.sequence: one for one in self.streams if one.sequence and not one.tokens.ready})
        look = self._time_to_look()
        for stream in list(self.streams):
            self._attempt(stream, partial(self._advance, look))

    def _time_to_look(self):
        """Whether to ask now which clients are still there."""
        now = time.monotonic()
        look = now - self._looked >= LOOK_SECONDS
        if look:
            self._looked = now
        return look

    def _decode(self, lacking):
        try:
            for sequence, token in self.batch.iterate(list(lacking)):
                lacking[sequence].tokens.put(token, sequence.ended)
        except Exception as error:  # the model itself failed: none of these can go on
            for stream in lacking.values():
                self._end(stream, error)

    def _attempt(self, stream, move):
        try:
            move(stream)
        except Exception as error:
            self._end(stream, error)

    def _join(self, stream):
        prompt, stream.prompt = stream.prompt, None
        stream.sequence = self.batch.join(*prompt)

    def _advance(self, look, stream):
        if (look and stream.cancelled) or not stream.advance():
            self._end(stream)

    def _cut(self, stream):
        stream.cut()
        self._end(stream)

    def _end(self, stream, error=None):
        """Forget a stream, and close it."""
        self.streams.remove(stream)
        if stream.sequence:
            self.batch.leave(stream.sequence)
        self._close(stream, error)

    def _end_all(self, error):
        for stream in list(self.streams):
            self._end(stream, error)

    def _close(self, stream, error=None):
        try:
            stream.close(error)
        except Exception as failure:  # Triton takes no answer from this one: the others go on
            pb_utils.Logger.log_error(f"inference: a stream could not be closed: {failure}")
        stream.closed.set()
