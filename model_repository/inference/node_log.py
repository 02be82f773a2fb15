"""Structured logs of a node: one JSON line for each message, on standard error, where the server's own log goes."""

import json
import sys
import time


def log_message(node, request_id, stream_id, index, dims, end):
    """Write down what this node knows of one message; never its content, which belongs to a user.

    Triton's own logger asks the server for each line and waits, which costs ten times as much. Only the request id
    comes from outside and needs an encoder; the whole line in one would take most of the time that logging does.
    """
    line = (
        f'{{"time": {time.time()!r}, "node": "{node}", "request_id": {json.dumps(request_id)}, '
        f'"stream_id": {stream_id}, "index": {"null" if index is None else index}, "dims": {dims}, '
        f'"end": {"true" if end else "false"}}}\n'
    )
    sys.stderr.write(line)  # one write a line, so that lines of several processes do not mix
