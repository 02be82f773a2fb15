"""Memory faults of the C++ node, made visible: two faults on purpose, and sanitizers that see them.

``drive("latest", ids, fault=FAULTS["leak"])`` builds the node's engine with the fault in it, runs streams through it
outside of any server, and says what AddressSanitizer saw. The tracked sources stay as they are.
"""

import contextlib
import difflib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lab_utils import custom_backend
from lab_utils.custom_backend import BuildError
from lab_utils.launch import extra_backends
from lab_utils.server import TritonServer
from lab_utils.sources import find_source

MODEL = custom_backend.REPOSITORY / "token_stream_latest"
RUN_SECONDS = 60
# A user's own options must not change what is found.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1:symbolize=1:color=never",
    "TSAN_OPTIONS": "halt_on_error=1:color=never",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:color=never",
    "LSAN_OPTIONS": "",
}


@dataclass(frozen=True)
class Fault:
    """A fault on purpose: in `file` of the sources, the lines `old`, which occur once there, become the lines `new`."""

    name: str
    file: str
    old: str
    new: str
    what: str

    def text(self) -> str:
        """The whole file with the fault in it.

        Raises
        ------
        ValueError
            The lines that it replaces are not in the file (any more).
        """
        if _source(self.file).count(self.old) != 1:
            raise ValueError(f"fault {self.name!r} does not fit {self.file}: the lines that it replaces are not there")
        return _source(self.file).replace(self.old, self.new)


_END = """\
  close(stream, error);
  const auto same = [&](const auto& one) { return one.get() == &stream; };
  streams_.erase(std::remove_if(streams_.begin(), streams_.end(), same), streams_.end());
"""
_LEAK = """\
  close(stream, error);
  const auto same = [&](const auto& one) { return one.get() == &stream; };
  const auto found = std::find_if(streams_.begin(), streams_.end(), same);
  if (found == streams_.end()) return;
  found->release();
  streams_.erase(found);
"""
_USE_AFTER_FREE = """\
  const auto same = [&](const auto& one) { return one.get() == &stream; };
  streams_.erase(std::remove_if(streams_.begin(), streams_.end(), same), streams_.end());
  close(stream, error);
"""
_ENGINE = "token_stream/engine.cc"
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("leak", _ENGINE, _END, _LEAK, "a stream that has ended leaves the list, and nobody deletes it"),
        Fault("use_after_free", _ENGINE, _END, _USE_AFTER_FREE, "a stream is freed first, and closed after that"),
    )
}


@dataclass(frozen=True)
class DriveResult:
    """What one drive of the engine sent, and what the sanitizer saw.

    `lengths` has the number of ids in each message, of each stream that began; where the process was ended by the
    sanitizer, as far as it came. `heap` has the bytes that the node held when it sent them. `errors` has what streams
    ended with, in-band. `verdict` is "clean", "heap-use-after-free", "LeakSanitizer: detected memory leaks" or
    another headline of a sanitizer; without one, "nobody looked", or "ended by signal 11" and the like. `bytes` were
    leaked, or were read or written where they must not be. `where` is the innermost function of our own sources in
    the report, with file and line: of a leak, where the memory came from. `freed` and `allocated` are the same for a
    use after free. `report` is the sanitizer's text with our own functions only, and without addresses and paths.
    """

    lengths: tuple[tuple[int, ...], ...]
    heap: tuple[tuple[int, ...], ...]
    errors: tuple[str, ...]
    verdict: str
    bytes: int
    where: str
    freed: str
    allocated: str
    report: str


def diff(fault: Fault) -> str:
    """The fault as a unified diff of the tracked source."""
    before, after = (text.splitlines(keepends=True) for text in (_source(fault.file), fault.text()))
    return "".join(difflib.unified_diff(before, after, f"a/{fault.file}", f"b/{fault.file}", n=2))


def drive(
    rung: str,
    ids: Sequence[int],
    *,
    streams: int = 1,
    fault: Fault | None = None,
    sanitize: str | None = "address",
) -> DriveResult:
    """Run streams of given ids through the node's engine, one after another, and say what the sanitizer saw.

    Parameters
    ----------
    rung : str
        "append", "release", "replace" or "latest".
    ids : sequence of int
        What the model shall say in each stream.
    streams : int
        How many streams, at least 1.
    fault : Fault, optional
        A fault that is built in; see `FAULTS`.
    sanitize : str, optional
        "address", "undefined", or both with a comma between them; None for no sanitizer.

    Raises
    ------
    BuildError
        There is no compiler, or it refused the sources.
    ValueError
        There are no ids or no streams, or the rung is none.
    """
    if not ids or streams < 1:
        raise ValueError(f"{len(ids)} ids and {streams} streams; drive at least one id in at least one stream")
    place, _ = custom_backend.make("drive", patches=_patches(fault), sanitize=sanitize)
    files = [str(MODEL / "recipes.safetensors"), str(MODEL / "token_bytes.safetensors")]
    command = [str(place / "drive"), *files, rung, str(streams), *(str(int(one)) for one in ids)]
    done = subprocess.run(
        command,
        env={**os.environ, **OPTIONS},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=RUN_SECONDS,
        check=False,
    )
    if done.returncode == 2:
        raise ValueError(done.stderr.strip())
    return _result(done.stdout, done.stderr, done.returncode, sanitize)


def _source(file: str) -> str:
    return (custom_backend.SOURCES / file).read_text(encoding="utf-8")


def _patches(fault: Fault | None) -> dict[str, str]:
    return {fault.file: fault.text()} if fault else {}


# --- a server ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sanitized_server(fault: Fault | None = None) -> Iterator[TritonServer]:
    """A server that runs under AddressSanitizer, with the C++ backends built for that, and the fault built in.

    It serves the model `token_stream_latest` alone, on a CPU. A use of freed memory ends the server; `verdict` reads
    its log, inside of the block. Leaks are not looked for: a server that ends keeps memory of its own. The server is
    killed at the end: under AddressSanitizer it hangs after it has unloaded its last model (seen on release 24.10).

    Raises
    ------
    BuildError
        There is no compiler, it refused the sources, or it has no library of AddressSanitizer.
    ServerStartError
        The server did not become ready.
    ValueError
        The server is somebody else's, or in a container.
    """
    built = custom_backend.build(patches=_patches(fault), sanitize="address")
    found = find_source()
    if found.kind not in ("native", "wheel"):
        raise ValueError(f"the server is {found.kind} ({found.place}); a sanitizer needs one that is started here")
    environment = {
        "LD_PRELOAD": str(_preloaded()),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:print_legend=0:color=never",
    }
    source = replace(found, environment={**found.environment, **environment})
    server = TritonServer(
        source,
        [custom_backend.REPOSITORY],
        ["token_stream_latest"],
        flags=[],
        report=lambda _: None,
        backends=extra_backends([built.folder], source),
    )
    server._start()  # start_server has no way to say the environment
    with server:
        try:
            yield server
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                server._process.kill()


def verdict(log: str) -> str:
    """The headline of a sanitizer's report in a log, such as "heap-use-after-free"; "clean" where there is none."""
    return _verdict(log, 0, "address")


def _preloaded() -> Path:
    """The library of AddressSanitizer, which must be the first in a process whose program was built without it."""
    command = [*shlex.split(custom_backend.compiler()), "-print-file-name=libasan.so"]
    found = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    if not found.is_absolute() or not found.exists():
        raise BuildError(f"{command[0]} has no libasan.so; use GCC, and install its sanitizers (Debian: libasan)")
    return found.resolve()


# --- what was seen ----------------------------------------------------------------------------------------------------

_HEADLINE = re.compile(
    r"(?:ERROR|WARNING): (?:AddressSanitizer: (?P<memory>[\w-]+)|(?P<other>(?:Leak|Thread)Sanitizer: [\w -]+?))"
    r"(?: \(pid=\d+\)| on (?:unknown )?address.*| in .*)?$",
    re.MULTILINE,
)
_UNDEFINED = re.compile(r"runtime error: .*")
# Of our own sources; the sanitizer's own lie in other folders below a `src`.
_PLACE = r"(?:src|tests)/(?P<place>(?:token_stream/)?\w+\.(?:cc|h):\d+)"
_FRAME = re.compile(rf"^ +#\d+ (?:0x[0-9a-f]+ in )?(?P<function>.*?) \(?(?:\S*/)?{_PLACE}", re.MULTILINE)
_OWN_NAME = re.compile(r"(?!operator|_).*\w")  # not of a lambda, and not of the library's calls of it
_BYTES = re.compile(r"SUMMARY: AddressSanitizer: (\d+) byte|(?:READ|WRITE) of size (\d+)", re.IGNORECASE)


def _result(sent: str, printed: str, status: int, sanitize: str | None) -> DriveResult:
    lines = [line.split(" ", 2) for line in sent.splitlines()]
    count = 1 + max((int(stream) for _, stream, _ in lines), default=-1)
    messages = [[tuple(map(int, rest.split())) for kind, at, rest in lines if (kind, at) == ("message", str(stream))]
                for stream in range(count)]  # fmt: skip
    counted = _BYTES.search(printed)
    report = _readable(printed)
    freed, _, allocated = report.partition("\nfreed by ")[2].partition("\npreviously allocated by ")
    return DriveResult(
        lengths=tuple(tuple(length for length, _ in one) for one in messages),
        heap=tuple(tuple(held for _, held in one) for one in messages),
        errors=tuple(rest for kind, _, rest in lines if kind == "error"),
        verdict=_verdict(printed, status, sanitize),
        bytes=int(counted[1] or counted[2]) if counted else 0,
        where=_innermost(report),
        freed=_innermost(freed),
        allocated=_innermost(allocated),
        report=report,
    )


def _verdict(printed: str, status: int, sanitize: str | None) -> str:
    if "LeakSanitizer has encountered a fatal error" in printed:
        return "LeakSanitizer cannot look: this machine does not let it trace the process"
    headline = _HEADLINE.search(printed)
    if headline:
        return (headline["memory"] or headline["other"]).strip()
    undefined = _UNDEFINED.search(printed)
    if undefined:
        return undefined[0]
    if status != 0:
        return f"ended by signal {-status}" if status < 0 else f"exit status {status}"
    return "clean" if sanitize else "nobody looked"


def _readable(printed: str) -> str:
    """The report with our own functions only, without addresses, process ids, paths and the map of shadow bytes."""
    lines = printed.partition("Shadow bytes around")[0].splitlines()
    shown = [line for line in map(_readable_line, lines) if line is not None]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(shown)).strip()


def _readable_line(line: str) -> str | None:
    frame = _FRAME.match(line)
    if frame:
        name = _function(frame["function"])
        return f"    {name}  {frame['place']}" if _OWN_NAME.fullmatch(name) else None
    if re.match(r" +#\d+ ", line) or set(line) == {"="}:
        return None
    line = re.sub(r" in std::.*", "", line)
    line = re.sub(r" at pc 0x\w+ bp 0x\w+ sp 0x\w+", "", re.sub(r"==\d+==", "", line))
    line = re.sub(r"(?:\.\./|/)[^\s:]*/([^\s/:]+)", r"\1", line)
    return re.sub(r"0x[0-9a-f]{4,}", "0x...", line)


def _function(name: str) -> str:
    """The name of a function as one says it, without namespace and arguments."""
    plain = name.replace("token_stream::", "").replace("(anonymous namespace)::", "")
    return re.sub(r"[(<].*", "", plain)


def _innermost(report: str) -> str:
    found = re.search(r"^    (\S+)  (\S+)$", report, re.MULTILINE)
    return f"{found[1]}, {found[2]}" if found else ""
