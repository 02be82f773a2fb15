"""What a running tritonserver tells about itself: log level, configs, statistics, metrics, memory of its processes."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Protocol

import psutil
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from lab_utils.alarm import MACHINE, Sample
from lab_utils.api_key import RESTRICTED, ApiKey, closed, connect
from lab_utils.errors import ServerError

SECONDS = 5.0  # for one answer
STUB = "triton_python_backend_stub"
LEVEL = "log_verbose_level"

BACKLOG = "nv_inference_pending_request_count"
MEMORY = {
    "nv_cpu_memory_used_bytes": MACHINE,
    "nv_pinned_memory_pool_used_bytes": "(pinned)",
    "nv_gpu_memory_used_bytes": "(GPU)",
}


class SilentServerError(ServerError):
    """The server does not answer."""


class Endpoint(Protocol):
    """The part of Triton's protocol that a watch needs, over gRPC or HTTP. Raises `SilentServerError`."""

    url: str

    def verbose_level(self) -> int:
        """The log's verbose level."""

    def set_verbose_level(self, level: int) -> None:
        """Set it; no other setting changes."""

    def config(self, model: str) -> ModelConfig | None:
        """The config of a model; None where it is not loaded."""

    def executions(self) -> dict[str, int]:
        """Calls of each model so far, over all its versions, by statistics."""

    def mark(self, name: str) -> None:
        """Have the server write this name into its log, if that is verbose: ask for a model that is not there."""

    def close(self) -> None:
        """Close the connection."""


class GrpcEndpoint:
    """Over gRPC."""

    def __init__(self, url: str, key: ApiKey | None = None):
        self.url = url
        self._client = connect(url, key)

    def _ask(self, method: str, *arguments: object, **options: object) -> object:
        try:
            return getattr(self._client, method)(*arguments, client_timeout=SECONDS, **options)
        except InferenceServerException as error:
            if RESTRICTED in error.message():
                raise ServerError(closed(self.url)) from None
            if any(status in str(error.status()) for status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")):
                raise SilentServerError(f"the server at {self.url} does not answer: {error.message()}") from None
            raise ServerError(f"the server at {self.url} refused {method}: {error.message()}") from None

    def verbose_level(self) -> int:
        """The log's verbose level."""
        return self._ask("get_log_settings").settings[LEVEL].uint32_param

    def set_verbose_level(self, level: int) -> None:
        """Set it; no other setting changes."""
        self._ask("update_log_settings", {LEVEL: level})

    def config(self, model: str) -> ModelConfig | None:
        """The config of a model; None where it is not loaded."""
        try:
            return self._ask("get_model_config", model).config
        except SilentServerError:
            raise
        except ServerError:
            return None

    def executions(self) -> dict[str, int]:
        """Calls of each model so far, over all its versions, by statistics."""
        counts: dict[str, int] = {}
        for one in self._ask("get_inference_statistics").model_stats:
            counts[one.name] = counts.get(one.name, 0) + one.inference_stats.success.count
        return counts

    def mark(self, name: str) -> None:
        """Have the server write this name into its log, if that is verbose: ask for a model that is not there."""
        with suppress(ServerError):
            self._ask("infer", name, [])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class HttpEndpoint:
    """Over HTTP."""

    def __init__(self, url: str, key: ApiKey | None = None):
        self.url, self._headers = url, {key.header: key.value} if key else {}

    def _ask(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        try:
            return json.loads(_read(f"http://{self.url}{path}", data, self._headers))
        except urllib.error.HTTPError as error:
            reason = error.read().decode("utf-8", "replace")
            if RESTRICTED in reason:
                raise ServerError(closed(self.url)) from None
            raise ServerError(f"the server at {self.url} refused {path}: {error.code} {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise SilentServerError(f"the server at {self.url} does not answer: {error}") from None
        except ValueError:
            raise ServerError(f"the answer of {self.url}{path} is not JSON: is this Triton's HTTP port?") from None

    def verbose_level(self) -> int:
        """The log's verbose level."""
        return int(self._ask("/v2/logging").get(LEVEL, 0))

    def set_verbose_level(self, level: int) -> None:
        """Set it; no other setting changes."""
        self._ask("/v2/logging", {LEVEL: level})

    def config(self, model: str) -> ModelConfig | None:
        """The config of a model; None where it is not loaded."""
        try:
            answer = self._ask(f"/v2/models/{urllib.parse.quote(model)}/config")
        except SilentServerError:
            raise
        except ServerError:
            return None
        return json_format.ParseDict(answer, ModelConfig(), ignore_unknown_fields=True)

    def executions(self) -> dict[str, int]:
        """Calls of each model so far, over all its versions, by statistics."""
        counts: dict[str, int] = {}
        for one in self._ask("/v2/models/stats").get("model_stats", []):
            count = one.get("inference_stats", {}).get("success", {}).get("count", 0)
            counts[one["name"]] = counts.get(one["name"], 0) + int(count)
        return counts

    def mark(self, name: str) -> None:
        """Have the server write this name into its log, if that is verbose: ask for a model that is not there."""
        with suppress(ServerError):
            self._ask(f"/v2/models/{name}/config")

    def close(self) -> None:
        """Nothing to close."""


def metrics_page(url: str) -> str:
    """The page of metrics, as Prometheus reads it from the metrics port.

    Raises
    ------
    SilentServerError
        Nothing answers there.
    ServerError
        The answer is an error.
    """
    try:
        return _read(f"http://{url}/metrics").decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise ServerError(f"{url}/metrics answers {error.code}: is this the metrics port?") from None
    except (OSError, http.client.HTTPException) as error:
        raise SilentServerError(f"no metrics at {url}: {error}") from None


def metrics_samples(url: str) -> list[Sample]:
    """Backlog of each model and memory counters, from the metrics port.

    Raises
    ------
    SilentServerError
        Nothing answers there.
    ServerError
        What answers is not a page of metrics.
    """
    try:
        families = list(text_string_to_metric_families(metrics_page(url)))
    except ValueError:
        raise ServerError(
            f"the page at {url}/metrics is not in Prometheus' format: is this the metrics port?"
        ) from None
    return _samples(families, time.time())


def _samples(families: list, now: float) -> list[Sample]:
    backlog: dict[str, float] = {}
    memory: dict[str, float] = {}
    for line in (line for family in families for line in family.samples):
        if line.name == BACKLOG:
            model = line.labels.get("model", "?")
            backlog[model] = backlog.get(model, 0) + line.value  # over all versions
        elif line.name in MEMORY:
            gpu = line.labels.get("gpu_uuid")
            memory[f"(GPU {gpu})" if gpu else MEMORY[line.name]] = line.value
    waiting = [Sample(now, "backlog", node, value) for node, value in backlog.items()]
    return waiting + [Sample(now, "memory", node, value) for node, value in memory.items()]


def _read(url: str, data: bytes | None = None, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
    # No proxy: a server on this machine or in this network is meant.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, dict(headers)), timeout=SECONDS) as answer:
        return answer.read()


def find_process(url: str) -> psutil.Process | None:
    """The local process that listens on this HOST:PORT; None where there is none, several, or no right to know."""
    host, _, port = url.rpartition(":")
    if host.strip("[]") not in ("127.0.0.1", "localhost", "::1", "0.0.0.0"):
        return None
    with suppress(psutil.Error, ValueError):
        listening = (one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        found = {one.pid for one in listening if one.laddr.port == int(port)}
        if len(found) == 1 and (pid := found.pop()):
            return psutil.Process(pid)
    return None


def process_samples(server: psutil.Process) -> Iterator[Sample]:
    """Resident memory of the server and of the Python processes of its models, in bytes; shared pages count in each."""
    now = time.time()
    memory = {"(server)": 0.0}
    with suppress(psutil.Error):
        memory["(server)"] = float(server.memory_info().rss)
        for child in server.children(recursive=True):
            with suppress(psutil.Error):
                if model := stub_model(child.cmdline()):
                    memory[model] = memory.get(model, 0.0) + child.memory_info().rss
    return (Sample(now, "memory", node, value) for node, value in memory.items() if value)


def stub_model(command: list[str]) -> str:
    """The model of a Python backend's process, whose command line is `…stub …/MODEL/VERSION/model.py …`; else empty."""
    if len(command) < 2 or not command[0].endswith(STUB):
        return ""
    parts = command[1].split("/")
    return parts[-3] if len(parts) >= 3 else ""
