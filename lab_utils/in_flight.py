"""Requests that a server began and never gave back: seen when a model is unloaded, and when the server stops."""

import re
import time

from lab_utils.errors import ServerError
from lab_utils.server import TritonServer

POLL_SECONDS = 0.01
LOOK = "model versions that have in-flight inferences"
IN_FLIGHT = re.compile(r"Model '(?P<model>[^']+)' \(version \d+\) has (?P<count>\d+) in-flight inferences")


def unload_state(server: TritonServer, model: str, seconds: float = 1.0) -> str:
    """Unload a model, and say how far the server got with it.

    Parameters
    ----------
    server : TritonServer
    model : str
        It is ready, and no stream is open through it.
    seconds : float
        How long to wait for it.

    Returns
    -------
    str
        "UNAVAILABLE" once it is gone; "UNLOADING" while the server waits for a request that is still in flight.
    """
    with server.client() as client:
        client.unload_model(model)
        deadline = time.monotonic() + seconds
        while (state := _state(client, model)) != "UNAVAILABLE" and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    return state


def in_flight_at_stop(server: TritonServer) -> dict[str, int]:
    """Stop a local server, and return the requests that it still waited for: model to number of requests.

    The server waits for them until its exit time-out, here 5 seconds, and names them in its log. Without any, it stops
    at once, and the result is empty.

    Raises
    ------
    lab_utils.errors.ServerError
        The server is stopped already, or somebody else runs it.
    """
    if not server.running or server.log_path is None:
        raise ServerError("only a server that was started here, and runs, can be stopped and asked for its log")
    with open(server.log_path, encoding="utf-8", errors="replace") as log:  # stopping removes the file's name alone
        server.stop()
        last_look = log.read().rpartition(LOOK)[2]  # a request that was just ending may be in an earlier one
    return dict(sorted((match["model"], int(match["count"])) for match in IN_FLIGHT.finditer(last_look)))


def _state(client: object, model: str) -> str:
    index = client.get_model_repository_index().models
    return next(each.state for each in index if each.name == model)
