"""Whose tensor is it? Find node, request and message number of every tensor in a tritonserver's verbose log.

An input is easy: its line names request and model. An output's line names neither, so it belongs to the one node that
can have sent it: one that was called, has begun, was asked for a tensor of that name, and has not answered yet unless
it is decoupled. When several requests could have sent an output that another step takes in, the next call of that step
tells: its line has the request id, and the same dims. Where more than one sender remains, the message names the
candidates and no request: nothing is guessed. Requests that run at the same time with the same id, or with none, cannot
be told apart by anything in the log. Streams that were open before the log became verbose have no beginning in it: the
first requests after that may be mixed up with them, so begin a watch when little is going on. A request that is over
for its client but not yet released in the server does no harm.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

from tritonclient.grpc.model_config_pb2 import ModelConfig

from lab_utils.trace_records import ITEM_SIZES
from lab_utils.verbose_log import (
    NO_ID,
    Added,
    Allocated,
    Loaded,
    Prepared,
    Record,
    StateChange,
    StreamEnded,
    Tensor,
    Unreadable,
)

LENGTH_PREFIX = 4  # bytes before each element of dtype BYTES

MOST_OPEN = 1_000  # outputs, drafts and ended streams that are kept while it is not known whose they are
MOST_LABELS = 100_000

Place = tuple[str, str]  # model and its own tensor name


@dataclass(frozen=True)
class Message:
    """One tensor, as one node received it with one call or sent it with one response.

    Attributes
    ----------
    seconds : float
        When its line was written: since 1970, UTC, by the server's clock.
    request : str or None
        Label of the client's request: its id, or ``#3`` for the third request where it has none. None where it cannot
        be told.
    node : str or None
        The model. None where it cannot be told.
    version : int or None
        Of the model.
    side : {"input", "output"}
    tensor : str
        The model's own name for it.
    dtype : str
        Such as "INT32".
    dims : tuple of int
        With the batch dimension where the model has one.
    nbytes : int or None
        None for a BYTES input that a client sent: the log does not have its size.
    number : int or None
        1 for the first message of this tensor at this node and side, in this request. None where that cannot be told.
    candidates : tuple of str
        Where request or node cannot be told: who it can be, such as ``("A: inference", "B: inference")``.
    """

    seconds: float
    request: str | None
    node: str | None
    version: int | None
    side: str
    tensor: str
    dtype: str
    dims: tuple[int, ...]
    nbytes: int | None
    number: int | None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """What a model's config tells about its calls.

    Attributes
    ----------
    decoupled : bool
        Whether it may answer more than once; an ensemble may if one of its steps does.
    members : frozenset of str
        For an ensemble: the models of its steps, and theirs.
    sources : mapping of (str, str) to (str, str)
        For an ensemble: the input of a step, as (model, tensor), to the output that it comes from.
    repeated : frozenset of str
        Members that are more than one step: the log does not tell which step a line belongs to.
    """

    decoupled: bool = False
    members: frozenset[str] = frozenset()
    sources: Mapping[Place, Place] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()


class Catalogue:
    """The facts of each model, read once from its config.

    Parameters
    ----------
    config_of : callable
        Takes the name of a model; returns its config, or None where there is none to be had.
    """

    def __init__(self, config_of: Callable[[str], ModelConfig | None] = lambda _: None):
        self._config_of = config_of
        self._facts: dict[str, ModelFacts | None] = {}

    def facts(self, model: str) -> ModelFacts | None:
        """The facts of a model; None where its config is not known."""
        if model not in self._facts:
            self._facts[model] = None  # an ensemble that holds itself ends here
            config = self._config_of(model)
            self._facts[model] = None if config is None else self._read(config)
        return self._facts[model]

    def forget(self) -> None:
        """Read all configs anew: a model was loaded."""
        self._facts.clear()

    def _read(self, config: ModelConfig) -> ModelFacts:
        steps = config.ensemble_scheduling.step
        inner = [facts for step in steps if (facts := self.facts(step.model_name))]
        uses = Counter(step.model_name for step in steps) + sum((Counter(one.members) for one in inner), Counter())
        sources = {place: source for one in inner for place, source in one.sources.items()}
        return ModelFacts(
            decoupled=config.model_transaction_policy.decoupled or any(one.decoupled for one in inner),
            members=frozenset(uses),
            sources=sources | _sources(config),
            repeated=frozenset(model for model, count in uses.items() if count > 1),
        )


def wiring(config: ModelConfig, ensemble: str) -> dict[Place, Place]:
    """Who feeds whom in an ensemble, in the models' own names.

    Parameters
    ----------
    config : ModelConfig
        The ensemble's.
    ensemble : str
        Its name. It feeds its steps with what it is sent, and is fed with what it answers.

    Returns
    -------
    dict of (str, str) to (str, str)
        From model and tensor of a consumer to those of its producer; empty for a model that is no ensemble.
    """
    steps = config.ensemble_scheduling.step
    sources = {tensor.name: (ensemble, tensor.name) for tensor in config.input}
    sources |= {tensor: (step.model_name, name) for step in steps for name, tensor in step.output_map.items()}
    sinks = [((ensemble, tensor.name), tensor.name) for tensor in config.output]
    sinks += [((step.model_name, name), tensor) for step in steps for name, tensor in step.input_map.items()]
    return {sink: sources[tensor] for sink, tensor in sinks if tensor in sources} if steps else {}


def _sources(config: ModelConfig) -> dict[Place, Place]:
    """The same between the steps alone."""
    return {sink: source for sink, source in wiring(config, "").items() if sink[0] and source[0]}


@dataclass(eq=False)
class _Node:
    """The calls of one model within one client request."""

    request: _Request
    model: str
    facts: ModelFacts | None
    version: int = 0
    outputs: set[str] = field(default_factory=set)
    called: int = 0
    begun: int = 0
    answered: Counter = field(default_factory=Counter)

    def may_send(self, tensor: str, begun: int) -> bool:
        if tensor not in self.outputs or not begun:
            return False
        return self.facts is None or self.facts.decoupled or self.answered[tensor] < begun

    def __str__(self) -> str:
        return f"{self.request.label}: {self.model}"


@dataclass(eq=False)
class _Request:
    """One request of a client, with all calls of models that it led to."""

    label: str
    model: str
    facts: ModelFacts | None
    nodes: dict[str, _Node] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)  # messages so far, by model, side and tensor
    sizes: dict[Place, list[int | None]] = field(default_factory=lambda: defaultdict(list))
    unsure: set[tuple[str, str, str]] = field(default_factory=set)  # what may have lost a message: numbers are unknown
    answered: bool = False  # its stream was given the last response

    def takes(self, model: str) -> bool:
        """Whether a call of this model can be one of its steps."""
        return model in self.facts.members if self.facts else model != self.model

    @property
    def streams(self) -> bool:
        return self.facts is not None and self.facts.decoupled


@dataclass
class _Group:
    """All requests that run at the same time under one id."""

    open: int = 0  # calls of models
    requests: list[_Request] = field(default_factory=list)
    waiting: list[tuple[_Node, ...]] = field(default_factory=list)  # calls that have not begun
    started: int = 0  # of the waiting calls, how many have begun: which ones is not known


@dataclass(frozen=True)
class _Draft:
    """An output that several requests can have sent, until the step that takes it in is called."""

    seconds: float
    tensor: Tensor
    nbytes: int
    senders: tuple[_Node, ...]


class Attribution:
    """Turns the records of a verbose log into messages, one record after the other.

    Parameters
    ----------
    catalogue : Catalogue
        What is known of the models. Without configs every model is taken as decoupled, and a call as the step of
        the request that was there first with the same id.

    Attributes
    ----------
    ensembles : set of str
        Models that were seen to be ensembles.
    unknown : Counter
        What could not be told, by reason: sentences for a person, to go with a number.
    """

    def __init__(self, catalogue: Catalogue | None = None):
        self.ensembles: set[str] = set()
        self.unknown: Counter[str] = Counter()
        self._catalogue = catalogue or Catalogue()
        self._groups: dict[str, _Group] = {}
        self._lingering: list[_Request] = []  # released, but decoupled: responses may still come
        self._added: list[Added] = []
        self._drafts: list[_Draft] = []
        self._labels: Counter[str] = Counter()
        self._seen = 0
        self._streams_ended = 0
        self._has_states = False

    def feed(self, records: Iterable[Record]) -> Iterator[Message]:
        """Yield the messages that these records tell of, in the order in which they become certain."""
        for record in records:
            yield from self._take(record)

    def finish(self) -> Iterator[Message]:
        """Yield what is still undecided, as messages without a request: the log has ended."""
        drafts, self._drafts = self._drafts, []
        yield from map(self._given_up, drafts)

    def _take(self, record: Record) -> Iterable[Message]:
        match record:
            case Prepared():
                return self._prepared(record)
            case Allocated():
                return self._allocated(record)
            case StateChange():
                return self._changed(record)
            case Added():
                self._keep(self._added, record, "outputs have no line with their size")
            case StreamEnded():
                self._stream_ended()
            case Loaded():
                self._catalogue.forget()
            case Unreadable():
                self.unknown["lines of a known kind are written in a form that is not known: another release?"] += 1
        return ()

    def _keep(self, items: list, item: object, reason: str) -> None:
        items.append(item)
        if len(items) > MOST_OPEN:
            del items[0]
            self.unknown[reason] += 1

    # --- calls ----------------------------------------------------------------------------------------------------

    def _prepared(self, call: Prepared) -> Iterator[Message]:
        group = self._groups.setdefault(call.id, _Group())
        requests = [request for request in group.requests if request.takes(call.model)]
        if not requests:
            for identity in [one for one, other in self._groups.items() if other.requests and other.open <= 0]:
                yield from self._closed(identity)  # it had been kept, because it was the first
            group = self._groups.setdefault(call.id, group)
            requests = [self._new_request(call)]
            group.requests += requests
        nodes = tuple(self._called(request, call) for request in requests)
        group.open += 1
        group.waiting.append(nodes)
        for tensor in call.inputs:
            if len(nodes) == 1:
                yield from self._received(nodes[0], tensor, call.seconds)
            else:
                yield self._undecided(call.seconds, tensor, _fixed_size(tensor), nodes, "input")

    def _new_request(self, call: Prepared) -> _Request:
        self._seen += 1
        name = call.id if call.id and call.id != NO_ID else f"#{self._seen}"
        if len(self._labels) > MOST_LABELS:
            self._labels.clear()
        self._labels[name] += 1
        label = name if self._labels[name] == 1 else f"{name} ({self._labels[name]})"
        return _Request(label, call.model, self._facts(call.model))

    def _facts(self, model: str) -> ModelFacts | None:
        facts = self._catalogue.facts(model)
        if facts and facts.members:
            self.ensembles.add(model)
        return facts

    def _called(self, request: _Request, call: Prepared) -> _Node:
        if call.model not in request.nodes:
            request.nodes[call.model] = _Node(request, call.model, self._facts(call.model))
            if request.facts is None and len(request.nodes) > 1:
                self.ensembles.add(request.model)
        node = request.nodes[call.model]
        node.version = call.version
        node.called += 1
        node.outputs.update(call.outputs)
        return node

    def _received(self, node: _Node, tensor: Tensor, seconds: float) -> Iterator[Message]:
        request, key = node.request, (node.model, "input", tensor.name)
        source = request.facts.sources.get((node.model, tensor.name)) if request.facts else None
        if source and request.counts[source[0], "output", source[1]] <= request.counts[key]:
            yield from self._decided(request, source, tensor.dims)
        nbytes = _fixed_size(tensor)
        if nbytes is None and source and len(request.sizes[source]) > request.counts[key]:
            nbytes = request.sizes[source][request.counts[key]]
        yield self._message(node, "input", tensor, nbytes, seconds)

    def _decided(self, request: _Request, source: Place, dims: tuple[int, ...]) -> Iterator[Message]:
        """The output that this call takes in, where it was undecided; among equal dims any is as good as another."""
        for position, draft in enumerate(self._drafts):
            if (source[1], dims) == (draft.tensor.name, draft.tensor.dims):
                for node in draft.senders:
                    if (node.request, node.model) == (request, source[0]):
                        del self._drafts[position]
                        yield self._sent(node, draft)
                        return

    # --- states ---------------------------------------------------------------------------------------------------

    def _changed(self, change: StateChange) -> Iterator[Message]:
        self._has_states = True
        group = self._groups.get(change.id)
        if group is None:  # of a request that was there before the log began
            return
        if change.old == "PENDING":
            self._begun(group)
        if change.new == "FAILED_ENQUEUE" or (change.new == "RELEASED" and change.old != "FAILED_ENQUEUE"):
            group.open -= 1
        if group.open <= 0 and not self._may_go_on(group):
            yield from self._closed(change.id)

    def _may_go_on(self, group: _Group) -> bool:
        """Whether the ends that were counted may be those of calls that were there before the log began.

        A server releases calls late: after the client has its last response, and has begun to watch.
        """
        return self._seen == 1 and any(one.streams and one.facts.members and not one.answered for one in group.requests)

    def _closed(self, identity: str) -> Iterator[Message]:
        for request in self._groups.pop(identity).requests:
            yield from self._ended(request)

    def _begun(self, group: _Group) -> None:
        """One of the waiting calls of this group has begun; where they differ, any of them may have."""
        group.started += 1
        if len(set(group.waiting)) == 1:
            nodes = group.waiting.pop()
            group.started -= 1
        else:
            nodes = {node for waiting in group.waiting for node in waiting}
        for node in nodes:
            node.begun = min(node.called, node.begun + 1)
        if group.started >= len(group.waiting):
            group.waiting.clear()
            group.started = 0

    def _ended(self, request: _Request) -> Iterator[Message]:
        if request.streams and not request.facts.members and not request.answered:
            self._keep(self._lingering, request, "streams had no line with their end")
            return
        if request.answered:
            self._streams_ended = max(0, self._streams_ended - 1)
        yield from self._without(request)

    def _without(self, request: _Request) -> Iterator[Message]:
        """Give up the drafts that only this request can have sent."""
        left = []
        for draft in self._drafts:
            if any(self._is_open(node.request) for node in draft.senders if node.request is not request):
                left.append(draft)
            else:
                yield self._given_up(draft)
        self._drafts = left

    def _is_open(self, request: _Request) -> bool:
        return any(request in group.requests for group in self._groups.values())

    def _stream_ended(self) -> None:
        """One of the streams ended. Which one is known only when all have, and that is when it matters."""
        open_streams = [one for group in self._groups.values() for one in group.requests if one.streams]
        self._streams_ended += 1
        if self._streams_ended >= len(open_streams) + len(self._lingering):
            for request in open_streams:
                request.answered = True
            self._lingering.clear()
            self._streams_ended = len(open_streams)

    # --- outputs --------------------------------------------------------------------------------------------------

    def _allocated(self, line: Allocated) -> Iterator[Message]:
        fitting = [
            added for added in self._added if added.tensor.name == line.name and _fits(added.tensor, line.nbytes)
        ]
        if len({added.tensor for added in fitting}) > 1:
            self._added = [added for added in self._added if added not in fitting]
            self.unknown["outputs of one name were written at the same time, with dims that cannot be told apart"] += 1
        elif fitting:
            self._added.remove(fitting[0])
            yield from self._output(fitting[0].seconds, fitting[0].tensor, line)

    def _output(self, seconds: float, tensor: Tensor, line: Allocated) -> Iterator[Message]:
        nodes = tuple(self._senders(tensor.name, line.to_client))
        if not nodes:
            self.unknown["outputs belong to requests that were there before the watch began"] += 1
            return
        draft = _Draft(seconds, tensor, line.nbytes, nodes)
        unclear = len(nodes) > 1 or any(
            one.tensor.name == tensor.name and nodes[0] in one.senders for one in self._drafts
        )
        if unclear and any(_is_taken_in(node, tensor.name) for node in nodes):
            self._drafts.append(draft)
            if len(self._drafts) > MOST_OPEN:
                yield self._given_up(self._drafts.pop(0))
        elif unclear:
            yield self._given_up(draft)
        else:
            yield self._sent(nodes[0], draft)

    def _senders(self, tensor: str, to_client: bool) -> Iterator[_Node]:
        requests = [request for group in self._groups.values() for request in group.requests]
        for request in [*requests, *self._lingering]:
            if to_client and request.answered:  # it had its last response, and is only released late
                continue
            for node in request.nodes.values():
                begun = node.begun if self._has_states else node.called
                if (node.model == request.model) is to_client and node.may_send(tensor, begun):
                    yield node

    def _sent(self, node: _Node, draft: _Draft) -> Message:
        node.answered[draft.tensor.name] += 1
        node.request.sizes[node.model, draft.tensor.name].append(draft.nbytes)
        return self._message(node, "output", draft.tensor, draft.nbytes, draft.seconds)

    def _given_up(self, draft: _Draft) -> Message:
        return self._undecided(draft.seconds, draft.tensor, draft.nbytes, draft.senders)

    # --- messages -------------------------------------------------------------------------------------------------

    def _message(self, node: _Node, side: str, tensor: Tensor, nbytes: int | None, seconds: float) -> Message:
        request, key = node.request, (node.model, side, tensor.name)
        request.counts[key] += 1
        number = None if key in request.unsure else request.counts[key]
        if request.facts and node.model in request.facts.repeated:
            number = None
            self.unknown[f"tensors belong to {node.model!r}, which is more than one step of {request.model!r}"] += 1
        return Message(
            *(seconds, request.label, node.model, node.version, side),
            *(tensor.name, tensor.dtype, tensor.dims, nbytes, number),
        )

    def _undecided(
        self, seconds: float, tensor: Tensor, nbytes: int | None, nodes: tuple[_Node, ...], side: str = "output"
    ) -> Message:
        requests, models = {node.request for node in nodes}, {node.model for node in nodes}
        if side == "input":
            why = "inputs belong to one of several requests with the same id, or none: give each an id of its own"
        elif len(requests) > 1:
            why = "outputs belong to one of several requests that ran at the same time"
        elif len(models) > 1:
            why = "outputs belong to one of several nodes with an output of that name"
        else:
            why = "outputs have an unknown place among the messages of their request"
        self.unknown[why] += 1
        for node in nodes:
            node.request.unsure.add((node.model, side, tensor.name))
        label = nodes[0].request.label if len(requests) == 1 else None
        model, version = (nodes[0].model, nodes[0].version) if len(models) == 1 else (None, None)
        fields = (tensor.name, tensor.dtype, tensor.dims, nbytes, None, tuple(map(str, nodes)))
        return Message(seconds, label, model, version, side, *fields)


def _is_taken_in(node: _Node, tensor: str) -> bool:
    """Whether another step of the same ensemble takes in this output."""
    facts = node.request.facts
    return facts is not None and (node.model, tensor) in facts.sources.values()


def _fixed_size(tensor: Tensor) -> int | None:
    """Bytes of a tensor whose elements all have the same size."""
    size = ITEM_SIZES.get(tensor.dtype)
    return None if size is None else size * prod(tensor.dims)


def _fits(tensor: Tensor, nbytes: int) -> bool:
    size = _fixed_size(tensor)
    return nbytes >= LENGTH_PREFIX * prod(tensor.dims) if size is None else size == nbytes
