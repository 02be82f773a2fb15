"""Read a tritonserver's log: which models loaded, which failed, and the lines that say why."""

import re
from pathlib import Path

RECORD = re.compile(r'[IWEF]\d{4} [\d:.]+ \d+ [\w.]+:\d+\] "(.*)"', re.S)
CAUSES = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: .*", re.S),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': .*", re.S),
    re.compile(r"failed to poll model '(?P<model>[^']+)'.*", re.S),
    re.compile(r".*Model '(?P<model>[^']+)' loading failed with error: at least one version must be.*", re.S),
)
CREATING = re.compile(r"error: creating server: .*?load failed for model '(?P<model>[^']+)': .*")
ERROR = re.compile(r"^error: |unrecognized option|error while loading|^terminate called|^E\d{4} ", re.I)
SHARED_MEMORY_FULL = re.compile(r"shared memory .*No space left on device", re.S)
SHARED_MEMORY_ADVICE = (
    "There is no room left in /dev/shm, through which the models' processes pass their data. `python -m lab_utils stop`"
    " removes what dead servers left there, `ls -l /dev/shm` shows the rest; a container gets more with docker run"
    " --shm-size=2g. Then start the server again.\n"
)
NO_GPU = re.compile(r"CudaDriverHelper|unable to create stream|initialize NVML|DCGM unable")


def read(path: Path) -> str:
    """The whole log; empty where there is none yet."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def loaded_models(text: str) -> list[str]:
    """Models in the order they finished loading."""
    return re.findall(r"successfully loaded '([^']+)'", text)


def failures(text: str) -> dict[str, list[str]]:
    """Why models failed to load: the messages for each model, roots rather than what follows from them."""
    found: dict[str, list[str]] = {}
    parse_error = ""
    for line in text.splitlines():
        if line.startswith("[libprotobuf ERROR"):
            parse_error = "\n" + line.partition("] ")[2]
        model, reason = _cause(line)
        if model and not (found and CREATING.match(line)):
            found.setdefault(model, []).append(reason + parse_error)
            parse_error = ""
    return found


def _cause(line: str) -> tuple[str, str]:
    record = RECORD.match(line)
    message = record.group(1) if record else line
    for pattern in CAUSES if record else (CREATING,):
        if match := pattern.match(message):
            return match["model"], message.replace("\\n", "\n").replace('\\"', '"').rstrip()
    return "", ""


def port_taken(text: str) -> bool:
    """Whether a listener found its port taken."""
    return re.search(r"Socket '[^']*' already in use", text) is not None


def distinct(reasons: list[str]) -> list[str]:
    """Each reason once: those of several versions of a model often differ in numbers and generated names alone."""
    return list({re.sub(r"[0-9a-f-]{8,}|\d+", "", reason): reason for reason in reversed(reasons)}.values())[::-1]


def advice(text: str) -> str:
    """What to do about a cause that Triton's words do not explain, as a line; empty where it is none of these."""
    return SHARED_MEMORY_ADVICE if SHARED_MEMORY_FULL.search(text) else ""


def errors(text: str, lines: int) -> str:
    """The first lines that say what stopped the program itself, such as a flag or a library it does not know."""
    found = [line for line in text.splitlines() if ERROR.search(line) and not NO_GPU.search(line)]
    return "\n".join(found[:lines])


def tail(text: str, lines: int) -> str:
    """The last lines that are neither tables nor remarks about a missing GPU."""
    kept = [line for line in text.splitlines() if line and line[0] not in "+|" and not NO_GPU.search(line)]
    return "\n".join(kept[-lines:])
