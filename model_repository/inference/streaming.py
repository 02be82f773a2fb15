"""What the four versions of `inference` share: reading a request, generating tokens, sending messages."""

import importlib.util
import json
import secrets
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from token_bytes import TokenBytes
from transformer import Transformer

NO_IDS = np.empty(0, dtype=np.int32)


class TokenStream:
    """The tokens of one request, each an INT32 array of shape [1].

    It reads one token ahead: while a token is handled, `last` says whether it is the final one.
    """

    def __init__(self, ids):
        self._ids = iter(ids)
        self._next = next(self._ids, None)

    def __iter__(self):
        return self

    def __next__(self):
        if self._next is None:
            raise StopIteration
        current, self._next = self._next, next(self._ids, None)
        return np.array([current], dtype=np.int32)

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
                sender.send(response(NO_IDS, 0, stream_id, end=True, error=explain(error)))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def stream(self, request, sender, stream_id):
        """Send the messages of one request, until its tokens end or its client cancels."""
        limit = self.message_limit(request)
        tokens = TokenStream(self.tokens(request))
        index = 0
        for index, message in enumerate(self.messages(tokens), start=1):
            if sender.is_cancelled():
                return
            if len(message) > limit:
                raise ValueError(
                    f"message {index} would hold {len(message):,} ids; at most {limit:,} are allowed in one message. "
                    'Ask for fewer tokens, or raise the request parameter "max_message_ids" '
                    f"(up to {self.hard_message_ids:,}). Version 1 keeps its buffer: reload the model to empty it"
                )
            sender.send(response(message, index, stream_id, tokens.last))
        if index == 0:  # a decoupled step that answers nothing leaves the ensemble's request in flight for good
            sender.send(response(NO_IDS, index, stream_id, end=True))

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

    def message_limit(self, request):
        """Most ids that one message of this request may hold."""
        limit = json.loads(request.parameters() or "{}").get("max_message_ids", self.default_message_ids)
        if type(limit) is not int or not 1 <= limit <= self.hard_message_ids:
            raise ValueError(
                f'request parameter "max_message_ids" is {limit!r}; expected a whole number '
                f"from 1 to {self.hard_message_ids:,}"
            )
        return limit


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


def response(message, index, stream_id, end, error=""):
    """One response: the ids, what identifies them, and an error if the stream failed."""
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("TOKEN_IDS", message),
            pb_utils.Tensor("INDEX", np.array([index], dtype=np.int32)),
            pb_utils.Tensor("STREAM_ID", np.array([stream_id], dtype=np.int64)),
            pb_utils.Tensor("END", np.array([end])),
            pb_utils.Tensor("ERROR", np.array([error.encode("utf-8")], dtype=np.object_)),
        ]
    )
