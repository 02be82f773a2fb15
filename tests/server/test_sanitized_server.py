"""The server itself under AddressSanitizer, with the C++ backends built for that."""

import contextlib

import numpy as np
import pytest

from lab_utils.client import iter_outputs
from lab_utils.errors import ServerDiedError
from lab_utils.memory_faults import FAULTS, sanitized_server, verdict
from lab_utils.server import TritonServer

MODEL = "token_stream_latest"
REPORTED_IDS = [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]


def forced(server: TritonServer) -> list[int]:
    """Stream the reported ids through the C++ node alone."""
    inputs = {"PROMPT_IDS": [64], "MAX_TOKENS": [100], "FORCED_IDS": REPORTED_IDS}
    tensors = {name: np.array(values, np.int32) for name, values in inputs.items()}
    return [id for answer in iter_outputs(server, MODEL, tensors) for id in answer["TOKEN_IDS"].tolist()]


def test_the_shipped_node_is_clean():
    """Streams, an unload and a load again, inside the real server: AddressSanitizer has nothing to say."""
    with sanitized_server() as server:
        assert [forced(server) for _ in range(3)] == [REPORTED_IDS] * 3
        server.reload(MODEL)
        assert forced(server) == REPORTED_IDS
        server.unload(MODEL)
        log = server.log
    assert verdict(log) == "clean"


def test_a_use_after_free_ends_the_server():
    """With the fault built in, the first stream ends the server, and its log says why."""
    with sanitized_server(FAULTS["use_after_free"]) as server:
        with contextlib.suppress(ServerDiedError):  # the client may have had its last response before
            forced(server)
        server._process.wait(60)
        with pytest.raises(ServerDiedError):
            server.check()
        log = server.log
    assert verdict(log) == "heap-use-after-free"
    assert "token_stream::Stream::" in log
    assert "token_stream::Engine::end" in log
