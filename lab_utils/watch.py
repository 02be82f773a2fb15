"""See what flows between the nodes of a running server's ensembles, with nothing changed in its models.

::

    with watch(server) as seen:
        ...  # any requests, from anywhere
    seen.dims("some_model", "SOME_TENSOR"), seen.alarms, seen.verdict(), seen.cannot_show

Dims and bytes come from the server's log, which is made verbose meanwhile (some 10 KB for each response of this lab's
ensembles): where it cannot be read, there are none. Backlog comes from the metrics port, calls of each model from the
statistics, memory from the metrics and from the processes of a local server. `Watch.cannot_show` says what was missing.

When the block ends, everything that the server logged about a response that a client has received is read. The server
writes the lines about an output before it hands the response over, unbuffered and into one file. So a line that it
writes later, at the request of this module (a call of a model that is not there, with a name that nothing else has),
stands behind them all: the log is read up to that line.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lab_utils import arguments
from lab_utils.alarm import Alarm, AlarmState, Rules, Sample
from lab_utils.api_key import key_from_environment
from lab_utils.attribution import Attribution, Catalogue, Message
from lab_utils.errors import ServerError
from lab_utils.log_lease import LogLease
from lab_utils.log_tail import LogTail
from lab_utils.verbose_log import read_records
from lab_utils.verdict import Track, Verdict, judge
from lab_utils.watch_figure import watch_figure
from lab_utils.watch_report import dims_of, summary, tracks_of
from lab_utils.watch_server import (
    Endpoint,
    GrpcEndpoint,
    HttpEndpoint,
    SilentServerError,
    find_process,
    metrics_samples,
    process_samples,
)

if TYPE_CHECKING:
    from lab_utils.server import TritonServer

INTERVAL = 0.5
READ_SECONDS = 0.05
MARK_SECONDS = 5.0
KEPT = 200_000  # messages, and samples; the oldest go first
SILENCES = 2  # answers that have to fail, one after the other, before a server counts as gone

Event = Message | Sample | Alarm | str
OnEvent = Callable[[Event], None]


def watch(
    server: TritonServer | None = None,
    *,
    grpc_url: str = "",
    http_url: str = "",
    metrics_url: str = "",
    log: str | Path | None = None,
    interval: float = INTERVAL,
    rules: Rules | None = None,
    on_event: OnEvent | None = None,
) -> Watch:
    """Watch a server for the length of a ``with`` block.

    Parameters
    ----------
    server : TritonServer, optional
        A server of `lab_utils.server`: it brings the addresses and, where it runs here, its log.
    grpc_url, http_url, metrics_url : str
        HOST:PORT of any other server; one of the first two is enough for all but the backlog. Where it asks for a key,
        the variable TRITON_API_KEY holds it, as HEADER=VALUE.
    log : path, optional
        The file that takes the server's log. A log alone, without a server, is read from its start.
    interval : float
        Seconds from one poll of statistics, metrics and memory to the next. The log is read every 0.05 s.
    rules : Rules, optional
        When an alarm is raised.
    on_event : callable, optional
        Called with each message, sample and alarm, and with a line of text for all else, from a thread of its own.

    Returns
    -------
    Watch
        To be used in a ``with`` block.

    Raises
    ------
    ValueError
        There is nothing to watch, or `interval` is not positive.
    """
    if server is not None:
        grpc_url, http_url = grpc_url or server.grpc_url, http_url or server.http_url
        metrics_url, log = metrics_url or server.metrics_url, log or server.log_path
        if not server.running:
            raise ValueError("this server is stopped; start one with start_server([...])")
    if not (grpc_url or http_url or metrics_url or log):
        raise ValueError("nothing to watch: name a server (gRPC or HTTP address), its metrics address, or a log file")
    if not arguments.number("interval", interval, "seconds above 0") > 0:
        raise ValueError(f"interval is {interval!r}; expected seconds above 0")
    for name, url in (("grpc", grpc_url), ("http", http_url), ("metrics", metrics_url)):
        if arguments.text(f"the {name} address", url, "localhost:8001") and not url.rpartition(":")[2].isdigit():
            raise ValueError(f"the {name} address is {url!r}; expected HOST:PORT, such as localhost:8001")
    key = key_from_environment() if server is None else server.api_key
    endpoint = GrpcEndpoint(grpc_url, key) if grpc_url else HttpEndpoint(http_url, key) if http_url else None
    file = arguments.path("log", log) if log else None
    return Watch(endpoint, metrics_url, file, interval, rules or Rules(), on_event)


def _open_log(path: Path, from_start: bool) -> LogTail:
    try:
        return LogTail(path, from_start)
    except OSError as error:
        raise OSError(
            f"the log {path} cannot be read ({error.strerror}): name the file that takes the server's standard error,"
            " as a user who may read it; without a log, the rest is shown"
        ) from None


class Watch:
    """What was seen, during the ``with`` block and after it; `watch` makes one.

    Attributes
    ----------
    notes : list of str
        What happened to the watch itself.
    ended : str
        Why the watch ended before its block: the server was gone. Empty if it did not.
    began : float
        Seconds since 1970, UTC.
    """

    def __init__(
        self,
        endpoint: Endpoint | None,
        metrics_url: str,
        log: Path | None,
        interval: float,
        rules: Rules,
        on_event: OnEvent | None,
    ):
        self._messages: deque[Message] = deque(maxlen=KEPT)
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._alarms: deque[Alarm] = deque(maxlen=KEPT)
        self.notes: list[str] = []
        self.ended, self.began = "", 0.0
        self._endpoint, self._metrics_url, self._log, self._interval = endpoint, metrics_url, log, interval
        self._on_event, self._state = on_event or (lambda _: None), AlarmState(rules)
        self._attribution = Attribution(Catalogue(self._config) if endpoint else None)
        self._tail: LogTail | None = None
        self._lease: LogLease | None = None
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._failure: BaseException | None = None
        self._mark, self._marked, self._silences = "", False, 0
        self._process = None
        self._blind: list[str] = []

    # --- the block ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Watch:
        if self.began:
            raise ValueError("this watch was used before; make a new one with watch(...)")
        self.began = time.time()
        try:
            if self._log:
                self._tail = _open_log(self._log, from_start=self._endpoint is None)
            if self._endpoint:
                self._open_server()
            self._poll()
            self._thread.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stop.set()
            self._thread.join()
            self._read_the_rest()
        finally:
            self._close()
        if self._failure and kind is None:
            raise self._failure

    def wait(self, seconds: float | None = None) -> None:
        """Wait until this time has passed, or the server is gone."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._thread.is_alive() and not self.ended:
            left = self._interval if deadline is None else min(deadline - time.monotonic(), self._interval)
            if left <= 0:
                return
            self._thread.join(left)

    def _open_server(self) -> None:
        self._process = find_process(self._endpoint.url)
        if self._tail is None:
            self._endpoint.verbose_level()  # is it there at all?
            return
        try:
            self._lease = LogLease(self._endpoint)
        except SilentServerError:
            raise
        except ServerError as error:
            self._blind.append(f"dims and bytes, unless its log is verbose anyway: {error}")
            return
        if not self._read_to_mark():
            self._blind.append(
                f"dims and bytes: {self._log} does not get what the server at {self._endpoint.url} logs; name its log"
            )

    def _read_the_rest(self) -> None:
        if self._lease and not self.ended and not self._blind and not self._read_to_mark():
            self._note(
                f"the end of the watch did not come to {self._log} within {MARK_SECONDS:g} s: its end may be lost"
            )
        self._read_log()
        for message in self._attribution.finish():
            self._add(message)
        self._poll()

    def _close(self) -> None:
        """Put the log level back, and let go of everything."""
        try:
            if self._lease and not self._lease.release():
                self._note("the log stays verbose: another watch of this server still goes on")
        except ServerError as error:
            self._note(f"the log level could not be put back to {self._lease.found}: {error}")
        finally:
            for each in (self._tail, self._endpoint):
                if each:
                    each.close()

    # --- what was seen --------------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[Message, ...]:
        """The last 200,000 tensors that went in or out of a node, in the order of the log."""
        return tuple(self._messages)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The last 200,000 polled values: backlog, executions, memory."""
        return tuple(self._samples)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """In the order in which they were raised."""
        return tuple(self._alarms)

    @property
    def requests(self) -> list[str]:
        """Labels of the client's requests, in the order of their first message."""
        return list(dict.fromkeys(message.request for message in self.messages if message.request))

    def dims(
        self, node: str, tensor: str, *, side: str | None = None, request: str | None = None
    ) -> list[tuple[int, ...]]:
        """The dims of one tensor at one node, message by message.

        Parameters
        ----------
        node, tensor : str
            As the model and its config name them.
        side : {"input", "output"}, optional
            By default whichever there is.
        request : str, optional
            Label of the client's request; by default the only one that has this tensor.

        Raises
        ------
        ValueError
            There is no such tensor, or more than one request or side has it.
        """
        return dims_of(self.messages, node, tensor, side, request)

    def tracks(self) -> list[Track]:
        """The sizes of all tensors, for `lab_utils.verdict.judge`."""
        return tracks_of(self.messages, self._attribution.ensembles)

    def verdict(self) -> Verdict:
        """Which node makes a tensor grow."""
        return judge(self.tracks())

    @property
    def cannot_show(self) -> tuple[str, ...]:
        """What stays unknown in this watch, and why; one line each."""
        missing = list(self._blind)
        if not self._log:
            missing.append("dims and bytes: the server's log cannot be read from here; name a file that takes it")
        if not self._endpoint:
            missing.append("calls of each model, and which models are ensembles or decoupled: no server was named")
        if not self._metrics_url and not any(line.startswith("backlog") for line in missing):
            missing.append("backlog, and memory counters: the address of the metrics port was not named")
        if not self._process:
            missing.append("memory of processes: no server process on this machine is known, or it is another user's")
        if any(message.nbytes is None for message in self.messages):
            missing.append("bytes of text (BYTES) that a client sends: the log has only its dims")
        unknown = dict(self._attribution.unknown)  # a copy: the thread may go on counting
        missing += [f"{count:,} times: {reason}; no alarm and no verdict" for reason, count in unknown.items()]
        return (*missing, "values of tensors: the log has only their dims; a trace of level TENSORS has both")

    def figure(self) -> Figure:
        """Dims, bytes, backlog and memory over time, for each node."""
        messages = self.messages
        began = min(
            [self.began, *(message.seconds for message in messages[:1])]
        )  # a stored log is older than the watch
        return watch_figure(messages, self.samples, self.alarms, began)

    def __str__(self) -> str:
        """The whole as text: what the figure shows, alarms, verdict, and what was not to be seen."""
        notes = [f"note: {note}" for note in (*self.notes, *(self._tail.notes if self._tail else ()))]
        lines = [summary(self.messages, self.samples), *map(str, self.alarms)]
        if self.messages:
            lines.append(str(self.verdict()))
        return "\n".join([*lines, *notes, *(f"cannot show: {line}" for line in self.cannot_show)])

    # --- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            due = time.monotonic() + self._interval
            while not self._stop.wait(READ_SECONDS):
                self._read_log()
                if time.monotonic() >= due:
                    self._poll()
                    due = time.monotonic() + self._interval
        except BaseException as error:
            self._failure = error

    def _read_log(self) -> None:
        if self._tail:
            for message in self._attribution.feed(read_records(self._lines())):
                self._add(message)

    def _lines(self) -> Iterator[str]:
        for line in self._tail.lines():
            if self._mark and self._mark in line:
                self._marked = True
            yield line

    def _read_to_mark(self) -> bool:
        """Have the server write a line that nothing else writes, and read up to it; False if it does not come."""
        self._mark, self._marked = f"no_model_watch_{uuid.uuid4().hex}", False
        self._endpoint.mark(self._mark)
        deadline = time.monotonic() + MARK_SECONDS
        while True:
            self._read_log()
            if self._marked or time.monotonic() > deadline:
                return self._marked
            time.sleep(READ_SECONDS / 5)

    def _poll(self) -> None:
        if self.ended:
            return
        try:
            self._poll_server()
            self._poll_metrics()
            self._silences = 0
        except SilentServerError as error:
            self._silent(error)
        if self._process:
            self._add_all(process_samples(self._process))

    def _poll_server(self) -> None:
        if self._endpoint:
            now = time.time()
            for node, count in self._endpoint.executions().items():
                self._add(Sample(now, "executions", node, count))
        if self._lease and self._lease.renew():
            self._note("somebody turned the verbose lines off; they are on again, but some lines are missing")

    def _poll_metrics(self) -> None:
        if not self._metrics_url:
            return
        try:
            self._add_all(metrics_samples(self._metrics_url))
        except ServerError as error:
            if isinstance(error, SilentServerError) and not self._endpoint:
                raise
            self._metrics_url = ""
            self._note(f"metrics are not polled any more: {error}")
            self._blind.append(f"backlog, and memory counters: {error}")

    def _silent(self, error: ServerError) -> None:
        self._silences += 1
        if self._silences >= SILENCES or (self._process and not self._process.is_running()):
            self.ended = f"{error} (after {time.time() - self.began:.1f} s of watching)"
            self._note(self.ended)

    def _config(self, model: str) -> object:
        with suppress(ServerError):
            return self._endpoint.config(model)
        return None

    # --- events ---------------------------------------------------------------------------------------------------

    def _add_all(self, samples: object) -> None:
        for sample in samples:
            self._add(sample)

    def _add(self, event: Message | Sample) -> None:
        kept, look = (
            (self._messages, self._state.message) if isinstance(event, Message) else (self._samples, self._state.sample)
        )
        kept.append(event)
        self._on_event(event)
        for alarm in look(event):
            self._alarms.append(alarm)
            self._on_event(alarm)

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._on_event(text)
