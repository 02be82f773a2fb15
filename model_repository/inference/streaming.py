"""What the four versions of `inference` share: reading a request, generating tokens, sending messages."""

import importlib.util
import json
import secrets
import time
import tracemalloc
import zlib
from collections import deque
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from batching import Batch
from engine import Engine
from gauge import StreamGauge
from guard import StreamGuard
from node_log import log_message
from options import read_options
from token_bytes import TokenBytes
from transformer import Transformer

NO_IDS = np.empty(0, dtype=np.int32)
NOT_TRACED = -1
DONE = object()


class Message(NamedTuple):
    """What `inference` hands on in one response.

    `ids` is an INT32 array of shape [-1], `index` counts the messages of a stream from 1, and `checksum` is the CRC-32
    of all ids that the model has made for this stream up to this message, taken where they are made.
    """

    ids: np.ndarray
    index: int
    stream_id: int
    end: bool
    checksum: int


class TokenStream:
    """The tokens of one request, each an INT32 array of shape [1], as they come from the model.

    It hands a token out only when the next one has come, or when none will: so `last` can say whether the token handed
    out most recently was the final one. `checksum` is the CRC-32 of the tokens handed out so far, as little-endian
    INT32.
    """

    def __init__(self, ids=(), complete=False):
        self._waiting = deque(ids)
        self._complete = complete
        self.checksum = 0

    def put(self, token, complete):
        """Take the next token from the model, or None for none, and whether it was the final one."""
        if token is not None:
            self._waiting.append(token)
        self._complete = complete

    @property
    def ready(self):
        """Whether the next token can be handed out, or the end be told."""
        return self._complete or len(self._waiting) > 1

    @property
    def last(self):
        """True when the token handed out most recently was the final one."""
        return self._complete and not self._waiting

    def __iter__(self):
        return self

    def __next__(self):
        if not self._waiting:
            raise StopIteration
        token = np.array([self._waiting.popleft()], dtype=np.int32)
        self.checksum = zlib.crc32(token, self.checksum)
        return token


class Window:
    """How many more messages the client of one stream has room for: it grants new ones as it handles them.

    A client that grants nothing for `seconds`, with nothing left, is taken for lost. An ensemble does not hand a
    cancellation on to a step that is running, so no other sign of it may ever come.
    """

    def __init__(self, key, messages, seconds, clock=time.monotonic):
        self.key = key
        self._left, self._seconds, self._clock = messages, seconds, clock
        self._spent_at = None

    @property
    def spent(self):
        """Whether nothing may be sent until the next grant."""
        return self._left <= 0

    @property
    def lost(self):
        """Whether the client has let its stream wait for too long."""
        return self.spent and self._clock() - self._spent_at > self._seconds

    def spend(self):
        """A message was sent."""
        self._left -= 1
        self._spent_at = self._clock()

    def grant(self, messages):
        """The client has room for that many more."""
        self._left += messages
        self._spent_at = self._clock()

    def check(self):
        """Raise a ValueError if the client is lost."""
        if self.lost:
            raise ValueError(f"the client granted no message for {self._seconds:g} s: it is taken for lost")


class Stream:
    """One request on its way: where its tokens come from, its messages, and where they go.

    Attributes that others use: `prompt` (ids and most tokens) until it has joined the batch, then `sequence`; `tokens`;
    `window`, where the client has one; `closed` is set when nothing more will be sent.
    """

    def __init__(self, request):
        self.sender = request.get_response_sender()
        self.wanted = request.requested_output_names()
        self.request_id = request.request_id()
        self.stream_id = secrets.randbits(63)  # client request ids may be empty or repeated, so the node mints its own
        self.prompt = self.sequence = None
        self.tokens = TokenStream()
        self.messages = iter(())
        self.max_message_ids = 0
        self.guard = self.window = None
        self.log = self.ended = False
        self.sent = 0
        self.closed = Event()

    @property
    def stalled(self):
        """Whether the stream waits for its client to grant further messages. After the end mark it needs no more."""
        return self.window is not None and self.window.spent and not self.ended

    @property
    def cancelled(self):
        """Whether the client has cancelled the request. Only a node that was called alone hears of it."""
        return self.sender.is_cancelled()

    def advance(self):
        """Send the next message, if its tokens have come. False when there are no more."""
        if self.stalled:
            self.window.check()
            return True
        if not self.tokens.ready:
            return True
        message = next(self.messages, DONE)
        if message is DONE:
            self.finish()
            return False
        if message:
            self.check(message)
            self.send(message)
        return True

    def check(self, message):
        """Refuse a message with more ids than the request allows, or one that breaks the contract."""
        if message.ids.size > self.max_message_ids:
            raise ValueError(
                f"message {message.index} would hold {message.ids.size:,} ids; at most {self.max_message_ids:,} are "
                'allowed in one message. Ask for fewer tokens, or raise the request parameter "max_message_ids". '
                "Version 1 keeps its buffer: reload the model to empty it"
            )
        if self.guard:
            self.guard.check(*message)

    def send(self, message, error=""):
        """Send one response."""
        self.sender.send(response(self.wanted, message, error))
        self.sent, self.ended = self.sent + 1, bool(message.end)
        if self.window:
            self.window.spend()
        if self.log:
            dims = list(message.ids.shape)
            log_message("inference", self.request_id, self.stream_id, message.index, dims, self.ended)

    def finish(self):
        """All messages have been sent."""
        if not self.sent:  # a decoupled step that answers nothing leaves the ensemble's request in flight for good
            self.cut()
        elif self.guard:
            self.guard.finish()

    def cut(self):
        """Send an end mark, so that the nodes behind this one forget the stream too."""
        self.send(no_ids(self.stream_id))

    def close(self, error=None):
        """Tell Triton that no more responses come; before that, say in-band what went wrong.

        An error response from a decoupled step would end the client's whole stream, overtake messages already sent, and
        leave the ensemble's request in flight for good.
        """
        try:
            if error:
                self.send(no_ids(self.stream_id), explain(error))
        finally:
            self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class StreamingModel:
    """A decoupled model that sends one message for each token. A version says what a message holds: `messages`.

    With `together`, requests are decoded together: `execute` returns at once, and the messages follow. Triton takes the
    request for done then, so its trace may lack what is sent afterwards. Otherwise a request is answered before
    the next one is looked at. One with a window never holds up the others: it may wait for its client for long.
    """

    together = False

    def initialize(self, args):
        """Load weights and token table, once for each instance, and start the engine."""
        folder = Path(args["model_repository"])
        parameters = json.loads(args["model_config"])["parameters"]
        limits = {name: int(value["string_value"]) for name, value in parameters.items()}
        self.grant_seconds = limits["grant_seconds"]
        self.default_message_ids, self.hard_message_ids = limits["default_message_ids"], limits["hard_message_ids"]
        self.token_bytes = TokenBytes.load(folder / "token_bytes.safetensors")
        transformer = Transformer.load(folder / "recipes.safetensors", device=choose_device(args))
        self.engine = Engine(Batch(transformer, limits["max_streams"]), limits["max_waiting"], StreamGauge(args))
        self.engine.start()

    def finalize(self):
        """End the engine."""
        self.engine.stop()

    def messages(self, tokens):
        """Yield one INT32 array of shape [-1] for each token of the `TokenStream`."""
        raise NotImplementedError

    def stream_messages(self, stream, options):
        """The `Message`s of one stream, as a generator; it may yield None where there is nothing to send yet."""
        return numbered(self.messages(stream.tokens), stream)

    def execute(self, requests):
        """Hand requests over to the engine; responses leave through each one's response sender."""
        for request in requests:
            stream = Stream(request)
            try:
                self.prepare(stream, request)
            except Exception as error:
                self.engine.refuse(stream, error)
            if not self.together and stream.window is None:
                stream.closed.wait()

    def prepare(self, stream, request):
        """Read and check a request, and submit it."""
        options = read_options(request.parameters(), self.default_message_ids, self.hard_message_ids)
        if options.grant is not None:
            self.engine.grant(stream, options.window_key, options.grant)
            return
        if options.trace_heap and not tracemalloc.is_tracing():
            tracemalloc.start()  # it goes on until the model is loaded anew: version 1 keeps memory between requests
        stream.max_message_ids, stream.log = options.max_message_ids, options.log
        if options.guard:
            stream.guard = StreamGuard(len(self.token_bytes))
        if options.window:
            stream.window = Window(options.window_key, options.window, self.grant_seconds)
        self.read_ids(stream, request)
        stream.messages = self.stream_messages(stream, options)
        self.engine.submit(stream)

    def read_ids(self, stream, request):
        """Take the forced ids if there are any, otherwise the prompt that the model is to continue."""
        max_tokens = int(input_values(request, "MAX_TOKENS")[0])
        if max_tokens < 1:
            raise ValueError(f"MAX_TOKENS is {max_tokens}; ask for at least 1")
        forced = input_values(request, "FORCED_IDS")
        if forced is None:
            stream.prompt = input_values(request, "PROMPT_IDS"), max_tokens
            return
        if not len(forced):
            raise ValueError("FORCED_IDS is empty; send at least one id, or leave the input out")
        self.token_bytes.check(forced)
        stream.tokens = TokenStream(forced[:max_tokens], complete=True)


def choose_device(args):
    """The device for the forward pass: "cuda:N" on a GPU instance where torch is installed, "cpu" otherwise."""
    if args["model_instance_kind"] != "GPU":
        return "cpu"
    if importlib.util.find_spec("torch") is not None:
        import torch  # only on a GPU: it is slow to import

        if torch.cuda.is_available():
            return f"cuda:{args['model_instance_device_id']}"
    pb_utils.Logger.log_warn("inference: a GPU, but no torch with CUDA in this Python environment: using the CPU")
    return "cpu"


def input_values(request, name):
    """A copy of an input tensor's values, which outlives the request; None where the request has no such input."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().copy()


def explain(error):
    """What a client is told: bad input in its own words, anything else with the kind of error in front."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def heap_bytes():
    """Bytes that Python objects and NumPy arrays of this process hold, where they are traced."""
    return tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else NOT_TRACED


def numbered(arrays, stream):
    """Make `Message`s of the arrays of ids of one stream."""
    for index, ids in enumerate(arrays, start=1):
        yield Message(ids, index, stream.stream_id, stream.tokens.last, stream.tokens.checksum)


def no_ids(stream_id):
    """The last message of a stream that has no ids, or no more."""
    return Message(NO_IDS, 0, stream_id, end=True, checksum=0)


def response(wanted, message, error=""):
    """One response: the ids, what identifies them, what checks them, and an error if the stream failed.

    It has the outputs that were asked for, and no others: the stub would drop the others without holding Python's
    lock, which ends the process while tracemalloc runs.
    """
    outputs = {
        "TOKEN_IDS": message.ids,
        "INDEX": np.array([message.index], dtype=np.int32),
        "STREAM_ID": np.array([message.stream_id], dtype=np.int64),
        "END": np.array([message.end]),
        "CHECKSUM": np.array([message.checksum], dtype=np.int64),
        "HEAP": np.array([heap_bytes()], dtype=np.int64),
        "ERROR": np.array([error.encode("utf-8")], dtype=np.object_),
    }
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, values) for name, values in outputs.items() if name in wanted]
    )
