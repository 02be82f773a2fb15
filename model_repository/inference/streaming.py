"""What the four versions of `inference` share: reading a request, generating tokens, sending messages."""

import importlib.util
import json
import secrets
import tracemalloc
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils
from guard import StreamGuard
from token_bytes import TokenBytes
from transformer import Transformer

NO_IDS = np.empty(0, dtype=np.int32)
NOT_TRACED = -1


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
    """The tokens of one request, each an INT32 array of shape [1].

    It reads one token ahead: while a token is handled, `last` says whether it is the final one. `checksum` is the
    CRC-32 of the tokens handed out so far, as little-endian INT32.
    """

    def __init__(self, ids):
        self._ids = iter(ids)
        self._next = next(self._ids, None)
        self.checksum = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, next(self._ids, None)
        token = np.array([current], dtype=np.int32)
        self.checksum = zlib.crc32(token, self.checksum)
        return token

    @property
    def last(self):
        """True when the token handed out most recently was the final one."""
        return self._next is None


class StreamingModel:
    """A decoupled model that sends one message for each token. A version says what a message holds: `messages`."""

    def initialize(self, args):
        """Load weights and token table, once for each instance."""
        folder = Path(args["model_repository"])
        parameters = json.loads(args["model_config"])["parameters"]
        self.default_message_ids = int(parameters["default_message_ids"]["string_value"])
        self.hard_message_ids = int(parameters["hard_message_ids"]["string_value"])
        self.token_bytes = TokenBytes.load(folder / "token_bytes.safetensors")
        self.transformer = Transformer.load(folder / "recipes.safetensors", device=choose_device(args))

    def messages(self, tokens):
        """Yield one INT32 array of shape [-1] for each token of the `TokenStream`."""
        raise NotImplementedError

    def execute(self, requests):
        """Serve the requests one after the other; responses leave through each request's response sender.

        A failure travels in-band, as the last message of its stream: an error response from a decoupled step would end
        the client's whole stream, overtake messages already sent, and leave the ensemble's request in flight for good.
        """
        for request in requests:
            sender = request.get_response_sender()
            stream_id = secrets.randbits(63)  # client request ids may be empty or repeated, so the node mints its own
            try:
                self.stream(request, sender, stream_id)
            except Exception as error:
                sender.send(response(request, no_ids(stream_id), explain(error)))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def stream(self, request, sender, stream_id):
        """Send the messages of one request, until its tokens end or its client cancels."""
        options = self.options(request)
        if options["trace_heap"] and not tracemalloc.is_tracing():
            tracemalloc.start()  # it goes on until the model is loaded anew: version 1 keeps memory between requests
        guard = StreamGuard(len(self.token_bytes)) if options["guard"] else None
        sent = False
        for message in self.stream_messages(request, stream_id):
            if sender.is_cancelled():
                return
            self.check_length(message, options["max_message_ids"])
            if guard:
                guard.check(*message)
            sender.send(response(request, message))
            sent = True
        if guard and sent:
            guard.finish()
        if not sent:  # a decoupled step that answers nothing leaves the ensemble's request in flight for good
            sender.send(response(request, no_ids(stream_id)))

    def stream_messages(self, request, stream_id):
        """Yield the `Message`s of one request."""
        tokens = TokenStream(self.tokens(request))
        for index, ids in enumerate(self.messages(tokens), start=1):
            yield Message(ids, index, stream_id, tokens.last, tokens.checksum)

    def tokens(self, request):
        """The ids to send, one after the other: the forced ones if there are any, otherwise the model's own."""
        max_tokens = int(input_values(request, "MAX_TOKENS")[0])
        if max_tokens < 1:
            raise ValueError(f"MAX_TOKENS is {max_tokens}; ask for at least 1")
        forced = input_values(request, "FORCED_IDS")
        if forced is None:
            return self.transformer.generate(input_values(request, "PROMPT_IDS"), max_tokens)
        if not len(forced):
            raise ValueError("FORCED_IDS is empty; send at least one id, or leave the input out")
        self.token_bytes.check(forced)
        return forced[:max_tokens]

    def options(self, request):
        """The request parameters, checked.

        "max_message_ids": most ids in one message. "trace_heap": report the Python heap in HEAP. "guard": check every
        message before it leaves.
        """
        given = json.loads(request.parameters() or "{}")
        limit = given.get("max_message_ids", self.default_message_ids)
        if type(limit) is not int or not 1 <= limit <= self.hard_message_ids:
            raise ValueError(
                f'request parameter "max_message_ids" is {limit!r}; expected a whole number '
                f"from 1 to {self.hard_message_ids:,}"
            )
        switches = {name: given.get(name, False) for name in ("trace_heap", "guard")}
        for name, value in switches.items():
            if type(value) is not bool:
                raise ValueError(f'request parameter "{name}" is {value!r}; expected true or false')
        return {"max_message_ids": limit, **switches}

    def check_length(self, message, limit):
        """Refuse a message with more ids than the request allows."""
        if message.ids.size > limit:
            raise ValueError(
                f"message {message.index} would hold {message.ids.size:,} ids; at most {limit:,} are allowed in one "
                'message. Ask for fewer tokens, or raise the request parameter "max_message_ids" '
                f"(up to {self.hard_message_ids:,}). Version 1 keeps its buffer: reload the model to empty it"
            )


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
    """The values of an input tensor, or None where the request has no such input."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def explain(error):
    """What a client is told: bad input in its own words, anything else with the kind of error in front."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def heap_bytes():
    """Bytes that Python objects and NumPy arrays of this process hold, where they are traced."""
    return tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else NOT_TRACED


def no_ids(stream_id):
    """The last message of a stream that has no ids, or no more."""
    return Message(NO_IDS, 0, stream_id, end=True, checksum=0)


def response(request, message, error=""):
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
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, values) for name, values in outputs.items() if name in wanted]
    )
