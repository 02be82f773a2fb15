"""Structured logs of a node: one JSON line for each message, on standard error, where the server's own log goes."""

import json
import sys
import time


def log_message(node, request_id, stream_id, index, dims, end):
    """Write down what this node knows of one message; never its content, which belongs to a user.

    Triton's own logger asks the server for each line and waits, which costs ten times as much.
    """
    line = {
        "time": time.time(),
        "node": node,
        "request_id": request_id,
        "stream_id": stream_id,
        "index": index,
        "dims": dims,
        "end": end,
    }
    sys.stderr.write(json.dumps(line) + "\n")  # one write a line, so that lines of several processes do not mix
