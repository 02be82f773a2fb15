"""Many streams at once: whose message arrives when, what a server holds for them, and what waits for a slow client."""

import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import combinations, islice, pairwise

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from lab_utils import arguments, node_logs
from lab_utils.client import Observation, StreamError, StreamResult, Window, iter_outputs, iter_stream
from lab_utils.errors import ServerDiedError, ServerError
from lab_utils.memory import snapshot
from lab_utils.server import TritonServer
from lab_utils.watch_compare import metrics_page
from lab_utils.watch_server import GrpcEndpoint, metrics_samples

GAUGE = "lab_open_streams"
LOOK_SECONDS = 0.02
PAUSE_SECONDS = 0.05
PATIENCE_SECONDS = 30.0

START = Window(4)  # what a stream may send before all of them have begun
Outcome = StreamResult | StreamError | ServerDiedError


# --- together ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """One message of one of several streams.

    Attributes
    ----------
    seconds : float
        When the client took it, counted from the moment when all streams were started.
    stream : int
        Number of its stream, from 1.
    observation : Observation
        The message.
    """

    seconds: float
    stream: int
    observation: Observation


@dataclass(frozen=True)
class Together:
    """Streams that ran at the same time: the outcome of each, and all messages in the order of their arrival."""

    outcomes: tuple[Outcome, ...]
    arrivals: tuple[Arrival, ...]

    @property
    def switches(self) -> int:
        """How many messages came from another stream than the message before them."""
        return sum(before.stream != after.stream for before, after in pairwise(self.arrivals))

    @property
    def by_stream(self) -> list[list[Arrival]]:
        """The messages of each stream."""
        found: list[list[Arrival]] = [[] for _ in self.outcomes]
        for arrival in self.arrivals:
            found[arrival.stream - 1].append(arrival)
        return found


def stream_together(
    server: TritonServer, requests: Sequence[Mapping[str, object]], window: Window | None = START
) -> Together:
    """Stream all requests at the same time, each over a connection of its own.

    Each client waits after its first message until all have theirs. So all streams are open together, and with a
    window no node is further ahead than that.

    Parameters
    ----------
    server : TritonServer
        From `lab_utils.server.start_server`.
    requests : sequence of mapping
        For each stream the arguments of `lab_utils.client.iter_stream`: "ensemble", "prompt", "max_tokens", ….
    window : Window, optional
        The credit of each stream; None for an ensemble whose node knows none.
    """
    run = _Run(server, window, threading.Barrier(max(1, len(requests))), [], time.perf_counter())
    with ThreadPoolExecutor(max(1, len(requests))) as pool:
        outcomes = tuple(pool.map(run.stream, range(1, len(requests) + 1), requests))
    return Together(outcomes, tuple(sorted(run.arrivals, key=lambda arrival: arrival.seconds)))


@dataclass
class _Run:
    """What the threads of `stream_together` share."""

    server: TritonServer
    window: Window | None
    start: threading.Barrier
    arrivals: list[Arrival]
    began: float

    def stream(self, number: int, request: Mapping[str, object]) -> Outcome:
        kept: list[Observation] = []
        try:
            for observation in iter_stream(self.server, window=self.window, **request):
                self.arrivals.append(Arrival(time.perf_counter() - self.began, number, observation))
                kept.append(observation)
                if len(kept) == 1:
                    self._wait_for_all()
        except StreamError as error:
            return StreamError(str(error), kept)
        except ServerDiedError as error:
            return error
        finally:
            if not kept:
                self.start.abort()  # the others would wait for this one in vain
        return StreamResult(tuple(kept))

    def _wait_for_all(self) -> None:
        with suppress(threading.BrokenBarrierError):
            self.start.wait(PATIENCE_SECONDS)


def in_turns(
    first: Iterable[Observation], second: Iterable[Observation], ahead: int
) -> tuple[StreamResult, StreamResult]:
    """Take `ahead` messages of the first stream, and then one of each in turn, to the end of both.

    Where both have ``window=Window(1)``, the node makes the messages in just this order.
    """
    ways = iter(first), iter(second)
    kept: tuple[list[Observation], list[Observation]] = (list(islice(ways[0], ahead)), [])
    open_ways = [1, 0]
    while open_ways:
        for way in tuple(open_ways):
            message = next(ways[way], None)
            if message is None:
                open_ways.remove(way)
            else:
                kept[way].append(message)
    return StreamResult(tuple(kept[0])), StreamResult(tuple(kept[1]))


def forced_inputs(token_ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Input tensors for `lab_utils.client.iter_outputs`, to have the inference node alone stream given ids."""
    inputs = {"PROMPT_IDS": token_ids[:1], "MAX_TOKENS": [len(token_ids)], "FORCED_IDS": token_ids}
    return {name: np.array(values, dtype=np.int32) for name, values in inputs.items()}


def both_indices(server: TritonServer, ensemble: str, token_ids: Sequence[int]) -> dict[str, list[int]]:
    """Stream given ids, and return the two indices of each message as they arrive: INDEX and RECEIVED_INDEX.

    INDEX goes from the inference node straight to the client, RECEIVED_INDEX through post-processing.
    """
    inputs = {name: values for name, values in forced_inputs(token_ids).items() if name != "PROMPT_IDS"}
    inputs["PROMPT"] = np.array([b"both indices"], dtype=np.object_)  # an ensemble takes text
    responses = list(iter_outputs(server, ensemble, inputs))
    return {name: [int(outputs[name][0]) for outputs in responses] for name in ("INDEX", "RECEIVED_INDEX")}


def inversions(index: Iterable[int]) -> int:
    """Pairs of messages that arrived in the wrong order: 0 where the index only rises."""
    found = arguments.items("index", index, "a list")
    for place, one in enumerate(found, 1):
        arguments.number(f"item {place} of index", one)
    return sum(earlier > later for earlier, later in combinations(found, 2))


# --- what is open -----------------------------------------------------------------------------------------------------


def open_streams(server: TritonServer) -> dict[str, int]:
    """Streams that each node holds state for, by model and version, from the gauge in the server's metrics.

    Raises
    ------
    lab_utils.errors.ServerError
        The server's metrics cannot be read.
    """
    held: Counter[str] = Counter()
    for family in text_string_to_metric_families(metrics_page(server)):
        for sample in family.samples if family.name == GAUGE else ():
            held[f"{sample.labels['model']} version {sample.labels['version']}"] += int(sample.value)
    return dict(sorted(held.items()))


def wait_until_free(server: TritonServer, node: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Wait until a node, such as "inference version 4", holds no stream any more; the seconds that it took.

    Raises
    ------
    lab_utils.errors.ServerError
        It still held one when the time was over, or the metrics cannot be read.
    """
    began = time.monotonic()
    while (held := open_streams(server).get(node, 0)) > 0:
        if time.monotonic() - began > seconds:
            raise ServerError(f"{node} still holds {held} stream(s) after {seconds:g} s: is one of them still in use?")
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - began


def messages_sent(server: TritonServer, request_id: str, node: str = "inference") -> int:
    """Messages of one request that a node has sent, by its own log: the request must have ``log=True`` and an id."""
    lines = node_logs.read(server.log.splitlines())
    return sum(line.node == node and line.request_id == request_id for line in lines)


@dataclass(frozen=True)
class Left:
    """What a node did for a client that left: messages sent in all, and seconds until it held no stream any more."""

    sent: int
    seconds: float


def leave(
    server: TritonServer, responses: Generator, request_id: str, after: int = 10, node: str = "inference version 4"
) -> Left:
    """Take some responses, close the stream, and look at what the node does then.

    Parameters
    ----------
    server : TritonServer
        A local server.
    responses : generator
        From `lab_utils.client.iter_stream` or `iter_outputs`, of a request with this id whose messages are logged.
    request_id : str
        The id of the request.
    after : int
        Responses to take before the client leaves.
    node : str
        The node that makes the messages, with its version.
    """
    with closing(responses):
        for _ in islice(responses, after):
            pass
    seconds = wait_until_free(server, node)
    return Left(messages_sent(server, request_id, node.partition(" ")[0]), seconds)


class HeldStreams:
    """Streams that are kept open: each takes its first message, and then waits until the ``with`` block ends.

    Parameters
    ----------
    server : TritonServer
        A local server.
    window : Window
        The credit of each stream, whose node and version are those of the ensemble.
    **request
        As for `lab_utils.client.iter_stream`.
    """

    def __init__(self, server: TritonServer, window: Window | None = None, **request: object):
        self._server, self._window, self._request = server, window or Window(1), request
        self._node = f"{self._window.node} version {self._window.version}"
        self._release = threading.Event()
        self._streams: list[Future[None]] = []

    def __enter__(self) -> "HeldStreams":
        return self

    def __exit__(self, *_: object) -> None:
        self._release.set()
        for one in self._streams:
            one.exception()  # waits for it; what failed has been told by `add`

    def add(self, count: int) -> None:
        """Open this many streams more, and wait until the node holds them all.

        Raises
        ------
        lab_utils.client.StreamError
            One of them was refused.
        lab_utils.errors.ServerError
            The node did not take them all in time.
        """
        pool = ThreadPoolExecutor(max(1, count))
        self._streams += [pool.submit(self._hold) for _ in range(count)]
        pool.shutdown(wait=False)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (held := open_streams(self._server).get(self._node, 0)) < len(self._streams):
            for one in self._streams:
                if one.done():
                    one.result()  # raises where it failed
            if time.monotonic() > deadline:
                raise ServerError(f"{self._node} holds {held} streams; expected {len(self._streams)}")
            time.sleep(LOOK_SECONDS)

    def _hold(self) -> None:
        with closing(iter_stream(self._server, window=self._window, **self._request)) as messages:
            next(messages, None)
            self._release.wait()


# --- what waits -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backlog:
    """What was on its way to a client that had stopped taking messages.

    Attributes
    ----------
    seconds : float
        Time since the client paused.
    queued : int
        Messages that waited in the server, in front of post-processing.
    unread : int
        Messages that had been post-processed, and that the client had not taken.
    memory : int
        Private memory of the server's process, in bytes.
    """

    seconds: float
    queued: int
    unread: int
    memory: int

    @property
    def waiting(self) -> int:
        """All messages that are on their way behind the inference node."""
        return self.queued + self.unread


def paused_client(
    server: TritonServer,
    request: Mapping[str, object],
    *,
    taken: int = 10,
    node: str = "postprocess",
    seconds: float = 1.0,
) -> list[Backlog]:
    """Take the first messages of a stream and then none, and look at what waits meanwhile. Nothing else may use `node`.

    The first look is taken before the stream begins. It ends when the number of waiting messages has not changed for a
    third of `seconds`, and cancels the stream.

    Parameters
    ----------
    server : TritonServer
        A local server.
    request : mapping
        Arguments of `lab_utils.client.iter_stream`.
    taken : int
        Messages that the client takes before it pauses.
    node : str
        The model behind the decoupled one: it is called once for each message.
    seconds : float
        How long the client pauses at least.
    """
    endpoint = GrpcEndpoint(server.grpc_url, server.api_key)
    with closing(endpoint), closing(iter_stream(server, **request)) as messages:
        done_before = endpoint.executions().get(node, 0)
        found, changed = [Backlog(0.0, 0, 0, snapshot(server).server)], 0.0
        for _ in islice(messages, taken):
            pass
        began = time.monotonic()
        while found[-1].seconds < max(seconds, changed + seconds / 3):
            found.append(_look(server, endpoint, node, done_before + taken, began))
            if found[-1].waiting != found[-2].waiting:
                changed = found[-1].seconds
            time.sleep(PAUSE_SECONDS)
        return found


def _look(server: TritonServer, endpoint: GrpcEndpoint, node: str, taken: int, began: float) -> Backlog:
    unread = endpoint.executions().get(node, 0) - taken  # before the queue: no message is counted twice
    samples = metrics_samples(server.metrics_url)
    queued = sum(one.value for one in samples if (one.quantity, one.node) == ("backlog", node))
    return Backlog(time.monotonic() - began, int(queued), max(0, unread), snapshot(server).server)
