"""The key to the closed APIs of a server: made anew for each server that the lab starts, given for one of your own.

Loopback does not separate the users of one machine. Triton can ask for a header with a secret value before it answers
an API of a group (``--http-restricted-api``, ``--grpc-restricted-protocol``). The lab closes every group but two:
health and metadata stay open, because they tell whether a server is ready, and which one it is.
"""

import os
import re
import secrets
from dataclasses import dataclass, field

from tritonclient import grpc
from tritonclient.grpc import InferenceServerClientPlugin

from lab_utils.errors import ServerError

VARIABLE = "TRITON_API_KEY"
HEADER = "triton-lab-key"
GRPC_PREFIX = "triton-grpc-protocol-"  # Triton's own: the name of the header over gRPC begins with it
RESTRICTED = "is restricted, expecting header"  # the server's words, over gRPC and over HTTP
CLOSED = ("inference", "shared-memory", "model-config", "model-repository", "statistics", "trace", "logging")


@dataclass(frozen=True)
class ApiKey:
    """A header that opens a server: its name over HTTP, and the secret value, which is never printed by accident."""

    header: str
    value: str = field(repr=False)

    @property
    def text(self) -> str:
        """`HEADER=VALUE`, as the variable TRITON_API_KEY takes it."""
        return f"{self.header}={self.value}"

    @property
    def flags(self) -> list[str]:
        """The two flags that close a server's APIs to everybody without this key. They hold the secret."""
        groups = ",".join(CLOSED)
        return [f"--http-restricted-api={groups}:{self.text}", f"--grpc-restricted-protocol={groups}:{self.text}"]


class _Opener(InferenceServerClientPlugin):
    """Adds the header to every call of a client."""

    def __init__(self, key: ApiKey):
        self._key = key

    def __call__(self, request: object) -> None:
        request.headers[f"{GRPC_PREFIX}{self._key.header}"] = self._key.value


def new_key() -> ApiKey:
    """A key that nobody can guess."""
    return ApiKey(HEADER, secrets.token_hex(16))


def key_from_environment() -> ApiKey | None:
    """The key to a server of your own, from TRITON_API_KEY; None where that is not set.

    Raises
    ------
    ServerError
        It is not `HEADER=VALUE`.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    found = re.fullmatch(r"([A-Za-z0-9-]+)=([!-~]+)", text)
    if not found:
        raise ServerError(
            f"{VARIABLE} is not HEADER=VALUE; expected what follows the colon in the server's "
            "--http-restricted-api=…:HEADER=VALUE (its value is not shown here)"
        )
    return ApiKey(found[1].lower().removeprefix(GRPC_PREFIX), found[2])  # gRPC takes lower case alone


def closed(url: str) -> str:
    """What to say when a server asked for a key, and got none or a wrong one."""
    return (
        f"the server at {url} answers only who sends its key: set {VARIABLE}=HEADER=VALUE, as its flag "
        "--http-restricted-api has it. That of a server of this lab is server.api_key.text in its notebook"
    )


def connect(url: str, key: ApiKey | None) -> grpc.InferenceServerClient:
    """A new gRPC client that sends the key with every call."""
    client = grpc.InferenceServerClient(url)
    if key:
        client.register_plugin(_Opener(key))
    return client
