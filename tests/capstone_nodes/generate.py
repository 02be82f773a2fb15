"""generate: a stand-in for a language model. It says the prompt again, one id in each message."""

import secrets
import time

import numpy as np
import triton_python_backend_utils as pb_utils

MOST_IDS = 512  # in one message
STEP_SECONDS = 0.001  # what one step of the model takes


def is_text(ids):
    """Whether the bytes are whole characters."""
    try:
        bytes(ids).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class TritonPythonModel:
    """`PROMPT_IDS` and `MAX_TOKENS` to messages: `TOKEN_IDS`, `INDEX`, `STREAM_ID`, `END`, `ERROR`."""

    def initialize(self, args):
        """Nothing is shared between streams."""

    def execute(self, requests):
        """One stream at a time; there are four instances of this node, each a process of its own."""
        for request in requests:
            self.answer(request)

    def answer(self, request):
        """Send the messages of one stream, and then tell Triton that no more come."""
        sender, stream_id = request.get_response_sender(), secrets.randbits(63)
        prompt = pb_utils.get_input_tensor_by_name(request, "PROMPT_IDS").as_numpy().tolist()
        most = int(pb_utils.get_input_tensor_by_name(request, "MAX_TOKENS").as_numpy()[0])
        try:
            for ids, index, end in self.messages(prompt, most):
                if len(ids) > MOST_IDS:
                    raise ValueError(f"message {index} would hold {len(ids)} ids; at most {MOST_IDS} are allowed")
                sender.send(response(ids, index, stream_id, end))
        except Exception as error:
            sender.send(response([], 0, stream_id, True, f"{type(error).__name__}: {error}"))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def messages(self, prompt, most):
        """Yield ids, index and end mark of each message; an empty answer is one message without ids."""
        context = list(prompt)  # what the model has seen so far: this state must grow, as a KV cache does
        length = min(len(prompt), most)
        if length == 0:
            yield [], 1, True
        for step in range(length):
            token = self.next_token(context, step)
            context.append(token)
            yield [token], step + 1, step + 1 == length

    def next_token(self, context, step):
        """The model: it has learnt to copy."""
        time.sleep(STEP_SECONDS)
        return context[step]


def response(ids, index, stream_id, end, error=""):
    """One message."""
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor("TOKEN_IDS", np.array(ids, dtype=np.int32)),
            pb_utils.Tensor("INDEX", np.array([index], dtype=np.int32)),
            pb_utils.Tensor("STREAM_ID", np.array([stream_id], dtype=np.int64)),
            pb_utils.Tensor("END", np.array([end])),
            pb_utils.Tensor("ERROR", np.array([error.encode("utf-8")], dtype=np.object_)),
        ]
    )
