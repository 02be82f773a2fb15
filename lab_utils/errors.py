"""What can go wrong with a server."""

from collections.abc import Sequence


class ServerError(RuntimeError):
    """A tritonserver did not do what it should; the message says what, why, and what to do next."""


class ServerStartError(ServerError):
    """A tritonserver did not become ready. `models` names the models that failed to load, if that was the reason."""

    def __init__(self, message: str, models: Sequence[str] = ()):
        super().__init__(message)
        self.models = tuple(models)


class ServerDiedError(ServerError):
    """A tritonserver, or the process of one of its models, ended although nobody stopped it."""
