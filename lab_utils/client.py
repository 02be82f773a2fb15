"""Stream one prompt through an ensemble, and observe every response: dims, bytes, arrival time, ids, text."""

import math
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from lab_utils import arguments, server_log
from lab_utils.errors import ServerDiedError, ToldShortly
from lab_utils.server import TritonServer

DEADLINE_SECONDS = 60.0
END_TRIES, END_SECONDS = 10, 0.5  # a stream that does not end in that time is cancelled
CHECK_SECONDS = 0.5  # how often a silent server is looked at
INT64 = np.iinfo(np.int64)
ITEM_SIZE = 4  # bytes of an INT32 id
GRANT = "grant"  # request id of a window's grants, whose answers nobody waits for
FAILURES = {"ERROR": "the inference node", "STATUS": "the guard in post-processing"}


@dataclass(frozen=True)
class Observation:
    """One response, as post-processing received the message and as it arrived here.

    Attributes
    ----------
    iteration : int
        1 for the first response of the stream.
    dims : tuple of int
        Shape of the id tensor that post-processing received.
    nbytes : int
        Bytes of that tensor.
    seconds : float
        Arrival, counted from the moment the request was sent.
    ids : numpy.ndarray
        INT32, the ids of the message; empty when only dims were asked for.
    text : str
        The text post-processing made of the message; empty when only dims were asked for.
    index : int
        Number that the inference node gave the message; as post-processing received it, where it says so.
    end : bool
        Whether the inference node marked the message as its last.
    heap : int or None
        Bytes that the Python heap of the inference node held when it sent the message; None where it was not traced.
    """

    iteration: int
    dims: tuple[int, ...]
    nbytes: int
    seconds: float
    ids: np.ndarray = field(repr=False)  # can be megabytes: never in a cell's output by accident
    text: str = field(repr=False)
    index: int
    end: bool
    heap: int | None = None


@dataclass(frozen=True)
class StreamResult:
    """All observations of one stream, in the order of arrival."""

    observations: tuple[Observation, ...]

    @property
    def lengths(self) -> list[int]:
        """Number of ids in each message: the first dimension that post-processing received."""
        return [observation.dims[0] for observation in self.observations]

    @property
    def ids(self) -> list[list[int]]:
        """The ids of each message."""
        return [observation.ids.tolist() for observation in self.observations]

    @property
    def text(self) -> str:
        """The texts of all messages, joined."""
        return "".join(observation.text for observation in self.observations)

    @property
    def token_seconds(self) -> float | None:
        """Mean time from one message to the next, in seconds, as it was seen here; None for a single message.

        The mean, because messages may arrive in bunches: the median of the gaps would then be far too small.
        """
        seconds = [observation.seconds for observation in self.observations]
        return (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else None


@dataclass(frozen=True)
class Window:
    """How many messages may be on their way to this client at most: a credit, granted anew as messages are handled.

    Attributes
    ----------
    messages : int
        The bound. Without one, a node that is faster than its consumer fills the server's memory.
    node : str
        The model that counts the credit: the decoupled one.
    version : int
        Its version in the ensemble.
    """

    messages: int
    node: str = "inference"
    version: int = 4

    def __post_init__(self) -> None:
        arguments.whole("messages", self.messages, 1)
        arguments.text("node", self.node, "inference")
        arguments.whole("version", self.version, 1)

    @property
    def share(self) -> int:
        """Messages in one grant: half of the window, so that the node need not wait for each one."""
        return max(1, self.messages // 2)


class StreamError(ToldShortly, RuntimeError):
    """A stream ended with an error or passed its deadline; `result` keeps what had arrived before."""

    def __init__(self, message: str, observations: Sequence[Observation] = ()):
        super().__init__(message)
        self.result = StreamResult(tuple(observations))


def infer(server: TritonServer, model: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call one model alone and return its output tensors by name. The model must not be decoupled.

    Text goes in and comes out as bytes objects in an array of dtype object.

    Raises
    ------
    StreamError
        The server answered with an error.
    """
    tensors = _tensors(inputs)
    try:
        with server.client() as client:
            result = client.infer(arguments.sendable("model", model), tensors, client_timeout=DEADLINE_SECONDS)
    except InferenceServerException as error:
        server.check()
        raise StreamError(f"model {model!r} answered with an error: {error.message()}") from None
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def stream(server: TritonServer, ensemble: str, prompt: str, max_tokens: int = 8, **options) -> StreamResult:
    """Stream one prompt and return when the stream has ended.

    Parameters
    ----------
    server : TritonServer
        From `lab_utils.server.start_server`.
    ensemble : str
        A decoupled ensemble with this lab's tensors, such as "ensemble_append".
    prompt : str
        The text to continue.
    max_tokens : int
        Most tokens to generate.
    **options
        As for `iter_stream`.

    Raises
    ------
    StreamError
        The server answered with an error, or the deadline passed. Its `result` keeps what had arrived before.
    lab_utils.errors.ServerDiedError
        The server, or the process of one of its models, ended meanwhile.
    ValueError, TypeError
        An argument is not what it should be.
    """
    observations: list[Observation] = []
    try:
        for observation in iter_stream(server, ensemble, prompt, max_tokens, **options):
            observations.append(observation)
    except StreamError as error:
        raise StreamError(str(error), observations) from None
    return StreamResult(tuple(observations))


def stream_many(
    server: TritonServer, ensemble: str, prompts: Sequence[str], max_tokens: int = 8, **options
) -> list[StreamResult | StreamError | ServerDiedError]:
    """Stream several prompts at the same time, each over a connection of its own; an outcome for each, in order."""

    def outcome(prompt: str) -> StreamResult | StreamError | ServerDiedError:
        try:
            return stream(server, ensemble, prompt, max_tokens, **options)
        except (StreamError, ServerDiedError) as error:
            return error

    prompts = arguments.texts("prompts", prompts)
    with ThreadPoolExecutor(max_workers=max(1, len(prompts))) as pool:
        return list(pool.map(outcome, prompts))


def iter_stream(
    server: TritonServer,
    ensemble: str,
    prompt: str,
    max_tokens: int = 8,
    *,
    forced_ids: Sequence[int] | None = None,
    dims_only: bool = False,
    max_message_ids: int | None = None,
    trace_heap: bool = False,
    guard: bool = False,
    log: bool = False,
    mutation: str | None = None,
    window: Window | None = None,
    request_id: str = "",
    deadline: float = DEADLINE_SECONDS,
) -> Iterator[Observation]:
    """Stream one prompt and yield each response as it arrives. Closing the generator cancels the request.

    With a window, closing it makes the node end the stream. Without one, a node in an ensemble does not hear of it: it
    works to its end, and the server later stops only at its exit time-out.

    Parameters
    ----------
    server, ensemble, prompt, max_tokens
        As for `stream`.
    forced_ids : sequence of int, optional
        Ids for the inference node to stream in place of its own; the prompt is then not continued.
    dims_only : bool
        Have post-processing report dims alone, so that no ids or text travel to the client.
    max_message_ids : int, optional
        Most ids in one message, if other than the model's default.
    trace_heap : bool
        Have the inference node trace its Python heap, from now on until it is loaded anew; it is slower then.
    guard : bool
        Have the inference node check each message against the contract before it sends it.
    log : bool
        Have the nodes write a JSON line for each message into the server's log.
    mutation : str, optional
        The fault that `inference_mutant` is to make; see its `mutations.py`.
    window : Window, optional
        The inference node sends no more messages than that ahead of what this client has taken, and hears of its end.
    request_id : str
        The id that the server's log and trace show.
    deadline : float
        Seconds for the whole stream.

    Raises
    ------
    StreamError, lab_utils.errors.ServerDiedError, ValueError, TypeError
        As for `stream`.
    """
    switches = {"dims_only": dims_only, "trace_heap": trace_heap, "guard": guard, "log": log}
    options = {"max_message_ids": max_message_ids, "mutation": mutation}
    # What is left at its default is not sent: the server hands all parameters on to every step, with every message.
    parameters = {name: on for name, on in switches.items() if on is not False}
    parameters |= {name: value for name, value in options.items() if value is not None}
    if not isinstance(window, Window | None):
        raise TypeError(f"window is {window!r}; expected a Window, such as Window(8), or None")
    if window:
        parameters |= {"window": window.messages, "window_key": secrets.randbits(62) + 1}
    tensors = _inputs(prompt, max_tokens, forced_ids)
    call = {"request_id": request_id, "parameters": parameters}
    with closing(_responses(server, ensemble, tensors, deadline, window, **call)) as responses:
        yield from _observations(responses)


def iter_outputs(
    server: TritonServer,
    model: str,
    inputs: Mapping[str, np.ndarray],
    *,
    version: int | None = None,
    parameters: Mapping[str, str | int | bool] | None = None,
    request_id: str = "",
    deadline: float = DEADLINE_SECONDS,
) -> Iterator[dict[str, np.ndarray]]:
    """Call any model, decoupled or not, and yield the output tensors of each response, by name.

    Closing the generator cancels the request.

    Parameters
    ----------
    server, request_id, deadline
        As for `iter_stream`.
    model : str
        Any model, with any tensors.
    inputs : mapping of str to numpy.ndarray
        Input tensors by name; text as bytes objects in an array of dtype object.
    version : int, optional
        Version of the model; by default the server takes the newest.
    parameters : mapping, optional
        Parameters of the request.

    Raises
    ------
    StreamError, lab_utils.errors.ServerDiedError
        As for `stream`.
    """
    tensors = _tensors(inputs)
    if not isinstance(parameters, Mapping | None):
        raise TypeError(f"parameters is {parameters!r}; expected a mapping of names to values")
    newest = version is None
    call = {
        "model_version": "" if newest else str(arguments.whole("version", version, 1)),
        "parameters": dict(parameters or {}),
    }
    with closing(_responses(server, model, tensors, deadline, request_id=request_id, **call)) as responses:
        for result, _ in responses:
            yield {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _responses(
    server: TritonServer,
    model: str,
    tensors: list[grpc.InferInput],
    deadline: float,
    window: Window | None = None,
    **call: object,
) -> Iterator[tuple[grpc.InferResult, float]]:
    """Each response that carries tensors, with the seconds from sending the request to its arrival."""
    _check_call(model, deadline, **call)
    arrivals = _Arrivals()
    with server.client() as client:
        client.start_stream(arrivals.take)
        began = time.perf_counter()
        try:
            client.async_stream_infer(model, tensors, enable_empty_final_response=True, **call)
            for count, arrived in enumerate(_until_final(server, arrivals.queue, began, deadline), start=1):
                yield arrived
                if window and count % window.share == 0:
                    _grant(client, window, call["parameters"]["window_key"], window.share)
        except InferenceServerException as error:
            server.check()
            raise StreamError(f"the request could not be sent: {error.message()}") from None
        finally:
            if window and not arrivals.over.is_set():
                _end(client, window, call["parameters"]["window_key"], arrivals.over)
            # Cancelling after the final response made some servers fail to stop cleanly.
            client.stop_stream(cancel_requests=not arrivals.final)


def _check_call(
    model: object, deadline: object, request_id: object, parameters: Mapping[object, object], **_: object
) -> None:
    """Refuse what the client's library would refuse too, without saying which argument it means."""
    arguments.sendable("the ensemble or model", model)
    arguments.number("deadline", deadline, "seconds")
    arguments.sendable("request_id", request_id)
    for name, value in parameters.items():
        arguments.sendable("the name of a parameter", name)
        if isinstance(value, str):
            arguments.sendable(f"parameter {name}", value)
        elif isinstance(value, int) and not isinstance(value, bool):
            arguments.whole(f"parameter {name}", value, INT64.min, INT64.max)


class _Arrivals:
    """The responses of one stream in a queue; `over` when no more come, `final` if they ended as they should."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self.over = threading.Event()
        self.final = False

    def take(self, result: grpc.InferResult | None, error: Exception | None) -> None:
        """What the client calls, in a thread of its own."""
        if result is not None and result.get_response().id == GRANT:
            return
        self.queue.put((result, error, time.perf_counter()))
        self.final = self.final or (result is not None and _is_final(result))
        if self.final or error is not None:
            self.over.set()


def _is_final(result: grpc.InferResult) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def _grant(client: grpc.InferenceServerClient, window: Window, key: int, messages: int) -> None:
    tensors = [
        _input("PROMPT_IDS", np.zeros(1, np.int32), "INT32"),
        _input("MAX_TOKENS", np.ones(1, np.int32), "INT32"),
    ]
    parameters = {"window_key": key, "grant": messages}
    call = {"model_version": str(window.version), "request_id": GRANT, "parameters": parameters}
    client.async_stream_infer(window.node, tensors, **call)


def _end(client: grpc.InferenceServerClient, window: Window, key: int, over: threading.Event) -> None:
    """Tell the node that nobody waits any more, and wait for the stream's end.

    A cancellation of the ensemble's request would not reach the node, and the ensemble could never be unloaded again: a
    server stops only at its exit time-out then.
    """
    with suppress(InferenceServerException):  # the connection is gone: the node finds out by itself
        for _ in range(END_TRIES):  # the first may overtake the request itself
            _grant(client, window, key, 0)
            if over.wait(END_SECONDS):
                return


def _until_final(
    server: TritonServer, arrivals: queue.SimpleQueue, began: float, deadline: float
) -> Iterator[tuple[grpc.InferResult, float]]:
    count, final = 0, False
    while not final:
        result, error, arrived = _next_response(server, arrivals, began, deadline)
        if error is not None:
            server.check()
            raise StreamError(_explained(f"the server ended the stream after {count} responses: {error.message()}"))
        response = result.get_response()
        if response.outputs:
            count += 1
            yield result, arrived - began
        final = _is_final(result)


def _observations(responses: Iterator[tuple[grpc.InferResult, float]]) -> Iterator[Observation]:
    iteration, failure = 0, None
    for result, seconds in responses:
        failure = failure or _failure(result)
        if not failure:
            iteration += 1
            yield _observation(result, iteration, seconds)
    if failure:
        raise StreamError(_explained(f"{failure[0]} ended the stream after {iteration} responses: {failure[1]}"))


def _explained(failure: str) -> str:
    return f"{failure}\n{server_log.advice(failure)}".rstrip("\n")


def _failure(result: grpc.InferResult) -> tuple[str, str] | None:
    """The node that failed in-band, and what it says; None where all is well."""
    for tensor, node in FAILURES.items():
        said = result.as_numpy(tensor)  # None where the ensemble has no such output
        if said is not None and said[0]:
            return node, said[0].decode("utf-8")
    return None


def _next_response(server: TritonServer, responses: queue.SimpleQueue, began: float, deadline: float) -> tuple:
    """The next response. While none comes, the server is looked at: a dead one never answers."""
    while (remaining := began + deadline - time.perf_counter()) > 0:
        try:
            return responses.get(timeout=min(remaining, CHECK_SECONDS))
        except queue.Empty:
            server.check()
    raise StreamError(f"no end of the stream within its deadline of {deadline:g} s; the request was cancelled")


def _inputs(prompt: str, max_tokens: int, forced_ids: Sequence[int] | None) -> list[grpc.InferInput]:
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is {type(prompt).__name__}; expected str")
    tensors: Mapping[str, tuple[np.ndarray, str]] = {
        "PROMPT": (np.array([arguments.sendable("prompt", prompt).encode("utf-8")], dtype=np.object_), "BYTES"),
        "MAX_TOKENS": (_int32("max_tokens", [max_tokens]), "INT32"),
    }
    if forced_ids is not None:
        tensors["FORCED_IDS"] = _int32("forced_ids", forced_ids), "INT32"
    return [_input(name, values, dtype) for name, (values, dtype) in tensors.items()]


def _int32(name: str, values: Sequence[int]) -> np.ndarray:
    """The values as an INT32 array of one axis; NumPy alone would wrap or cut what does not fit."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths in a list
        array = np.asarray(None)
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    limits = np.iinfo(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        raise ValueError(f"{name} is {str(values)[:60]}; expected whole numbers that fit into 32 bits")
    return array.astype(np.int32)


def _tensors(inputs: Mapping[str, np.ndarray]) -> list[grpc.InferInput]:
    arrays = isinstance(inputs, Mapping) and all(isinstance(values, np.ndarray) for values in inputs.values())
    if not arrays:
        raise TypeError(f"inputs is {str(inputs)[:60]}; expected a mapping of names to NumPy arrays")
    return [
        _input(arguments.sendable("the name of an input", name), values, np_to_triton_dtype(values.dtype))
        for name, values in inputs.items()
    ]


def _input(name: str, values: np.ndarray, dtype: str) -> grpc.InferInput:
    tensor = grpc.InferInput(name, values.shape, dtype)
    tensor.set_data_from_numpy(values)
    return tensor


def _observation(result: grpc.InferResult, iteration: int, seconds: float) -> Observation:
    dims = tuple(result.as_numpy("RECEIVED_DIMS").tolist())
    received = result.as_numpy("RECEIVED_INDEX")  # the ensemble may pair INDEX itself with another message's text
    return Observation(
        iteration=iteration,
        dims=dims,
        nbytes=math.prod(dims) * ITEM_SIZE,
        seconds=seconds,
        ids=result.as_numpy("RECEIVED_IDS"),
        text=result.as_numpy("TEXT")[0].decode("utf-8"),
        index=int((result.as_numpy("INDEX") if received is None else received)[0]),
        end=bool(result.as_numpy("END")[0]),
        heap=_heap(result),
    )


def _heap(result: grpc.InferResult) -> int | None:
    """What the node's Python heap holds; None where it is not traced, or the ensemble does not tell."""
    heap = result.as_numpy("HEAP")
    return None if heap is None or heap[0] < 0 else int(heap[0])
