"""A learner at her browser, without the browser: the login form, her server, a notebook, its kernel."""

import html
import json
import re
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import nbformat
import requests
import websocket
from jupyter_server.services.kernels.connection.base import deserialize_binary_message
from nbformat import NotebookNode

REQUEST_SECONDS = 60.0
POLL_SECONDS = 0.1
ASK_SECONDS = 5.0
OUTPUTS = {"stream", "display_data", "execute_result", "error"}


class VisitError(Exception):
    """The hub or a server did not do what a learner expects; the text is what she would read."""


class KernelSilentError(VisitError):
    """The kernel did not answer in time."""


def direct_session() -> requests.Session:
    """A session that takes no proxy from the environment: what it visits is on this machine."""
    session = requests.Session()
    session.trust_env = False
    return session


@dataclass
class Visitor:
    """One learner with her own cookies.

    Attributes
    ----------
    hub : str
        The hub's address, such as "http://127.0.0.1:8000/".
    name : str
        The learner's name.
    """

    hub: str
    name: str
    session: requests.Session = field(default_factory=direct_session)

    @property
    def home(self) -> str:
        """The address of the learner's own server."""
        return f"{self.hub}user/{self.name}/"

    def get(self, url: str, **options: object) -> requests.Response:
        """Load a page, as a browser does."""
        headers = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
        return self.session.get(url, timeout=REQUEST_SECONDS, headers=headers, **options)

    def api(self, method: str, path: str, body: object = None) -> object:
        """Call the REST API of the learner's server, as JupyterLab does, and return the decoded answer.

        Raises
        ------
        VisitError
            The server answered with an error.
        """
        headers = {"Accept": "application/json", "X-XSRFToken": self._token(f"/user/{self.name}/")}
        url = f"{self.home}api/{path}"
        answer = self.session.request(method, url, json=body, headers=headers, timeout=REQUEST_SECONDS)
        if not answer.ok:
            raise VisitError(f"{self.name}: {method} {path} answered {answer.status_code}: {answer.text[:300]}")
        return answer.json() if answer.content else None

    def _token(self, path: str) -> str:
        tokens = {cookie.path: cookie.value for cookie in self.session.cookies if cookie.name == "_xsrf"}
        return next((token for where, token in tokens.items() if where == path), "")

    def log_in(self, password: str) -> None:
        """Fill in the login form.

        Raises
        ------
        VisitError
            The hub did not let her in.
        """
        self.get(f"{self.hub}hub/login")
        form = {"username": self.name, "password": password, "_xsrf": self._token("/hub/")}
        headers = {"Sec-Fetch-Mode": "navigate"}
        url = f"{self.hub}hub/login?next=%2Fhub%2Fhome"
        answer = self.session.post(url, data=form, headers=headers, timeout=REQUEST_SECONDS)
        if not answer.ok:
            raise VisitError(
                f"{self.name}: the hub answered {answer.status_code} to the login: {message_in(answer.text)}"
            )

    def spawn(self, seconds: float = 120.0) -> None:
        """Ask for a server and wait until it is ready.

        Raises
        ------
        VisitError
            The hub refused or failed; the text is that of its page.
        """
        deadline = time.monotonic() + seconds
        answer = self.get(f"{self.hub}hub/spawn/{self.name}")
        while answer.ok and not urlsplit(answer.url).path.startswith(f"/user/{self.name}/"):
            if time.monotonic() > deadline:
                raise VisitError(f"{self.name}: no server after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
            answer = self.get(f"{self.hub}hub/spawn-pending/{self.name}")
        if not answer.ok:
            raise VisitError(f"{self.name}: the hub answered {answer.status_code}: {message_in(answer.text)}")

    def open(self, notebook: str) -> "OpenNotebook":
        """Open a notebook of her own folder with a kernel of its own.

        Seen once in some hundred kernels: one that runs, but answers nobody. A learner restarts it, and so does this;
        it is said on standard error.
        """
        content = nbformat.from_dict(self.api("GET", f"contents/{quote(notebook)}")["content"])
        body = {"path": notebook, "type": "notebook", "name": notebook, "kernel": {"name": "python3"}}
        session = self.api("POST", "sessions", body)
        try:
            return OpenNotebook(self, notebook, content, session)
        except KernelSilentError as error:
            print(f"{error}; restarting it", file=sys.stderr, flush=True)
            self.api("POST", f"kernels/{session['kernel']['id']}/restart")
            return OpenNotebook(self, notebook, content, session)

    def stop(self) -> None:
        """Stop her own server, as on the hub's page."""
        headers = {"X-XSRFToken": self._token("/hub/"), "Referer": f"{self.hub}hub/home"}
        url = f"{self.hub}hub/api/users/{self.name}/server"
        answer = self.session.delete(url, headers=headers, timeout=REQUEST_SECONDS)
        if not answer.ok:
            raise VisitError(f"{self.name}: the hub answered {answer.status_code} to the stop: {answer.text[:300]}")


class OpenNotebook:
    """A notebook with its kernel, over the server's websocket."""

    def __init__(self, visitor: Visitor, name: str, content: NotebookNode, session: dict):
        self.visitor, self.name, self.content = visitor, name, content
        self.session, self.kernel = session["id"], session["kernel"]["id"]
        self._client = uuid.uuid4().hex
        address = visitor.home.replace("http", "ws", 1)
        request = requests.Request("GET", visitor.home, cookies=visitor.session.cookies)
        cookies = visitor.session.prepare_request(request).headers.get("Cookie", "")
        self._socket = websocket.create_connection(
            f"{address}api/kernels/{self.kernel}/channels?session_id={self._client}",
            cookie=cookies,
            origin=visitor.hub.rstrip("/"),
            timeout=REQUEST_SECONDS,
        )
        self._socket.settimeout(1.0)
        self._wait_until_ready(time.monotonic() + REQUEST_SECONDS)

    def __enter__(self) -> "OpenNotebook":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run_all(self, seconds: float) -> None:
        """Run all code cells in order, as *Run All Cells* does: it stops at an error. Outputs go into `content`.

        Raises
        ------
        VisitError
            A cell ended with an error, or took too long.
        """
        for cell in self.content.cells:
            if cell.cell_type == "code" and cell.source.strip():
                cell.outputs = self.run(cell.source, seconds)
                for output in cell.outputs:
                    if output.output_type == "error":
                        raise VisitError(f"{self.visitor.name}: cell {cell.id}: {output.ename}: {output.evalue}")

    def run(self, code: str, seconds: float = REQUEST_SECONDS) -> list[NotebookNode]:
        """Run code and return its outputs.

        Raises
        ------
        VisitError
            It took too long, or the connection broke.
        """
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        sent = self._send("execute_request", content)
        messages = self._messages(sent, "execute_reply", time.monotonic() + seconds)
        outputs = [message for message in messages if message["header"]["msg_type"] in OUTPUTS]
        return [nbformat.v4.output_from_msg(message) for message in outputs]

    def _wait_until_ready(self, deadline: float) -> None:
        """Ask until the kernel has answered on both of its channels: a message before that can get lost."""
        while not self._answered(self._send("kernel_info_request", {}), min(deadline, time.monotonic() + ASK_SECONDS)):
            if time.monotonic() > deadline:
                self._socket.close()
                raise KernelSilentError(f"{self.visitor.name}: the kernel did not answer in {REQUEST_SECONDS:.0f} s")

    def _answered(self, sent: str, deadline: float) -> bool:
        try:
            for _ in self._messages(sent, "kernel_info_reply", deadline):
                pass
        except KernelSilentError:
            return False
        return True

    def _send(self, kind: str, content: dict) -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "version": "5.4"}
        header |= {"session": self._client, "username": self.visitor.name, "date": ""}
        parts = {"channel": "shell", "parent_header": {}, "metadata": {}, "buffers": []}
        self._socket.send(json.dumps({"header": header, "content": content, **parts}))
        return header["msg_id"]

    def _messages(self, sent: str, reply: str, deadline: float) -> Iterator[dict]:
        """What comes back for a message, until the reply is there and the kernel is idle again."""
        waits = {"idle", reply}
        while waits:
            message = self._receive(deadline)
            if message["parent_header"].get("msg_id") == sent:
                kind = message["header"]["msg_type"]
                waits.discard(message["content"]["execution_state"] if kind == "status" else kind)
                yield message

    def _receive(self, deadline: float) -> dict:
        """The next message. The server's pings keep the socket busy, so that its time-out alone would never come."""
        while time.monotonic() < deadline:
            try:
                data = self._socket.recv()  # binary where a widget sends a picture
                return deserialize_binary_message(data) if isinstance(data, bytes) else json.loads(data)
            except websocket.WebSocketTimeoutException:
                continue
            except (OSError, ValueError, websocket.WebSocketException) as error:
                raise VisitError(f"{self.visitor.name}: the connection to the kernel broke: {error!r}") from None
        raise KernelSilentError(f"{self.visitor.name}: no answer from the kernel in time")

    def save(self) -> None:
        """Save the notebook with its outputs, as the browser does."""
        body = {"type": "notebook", "format": "json", "content": self.content}
        self.visitor.api("PUT", f"contents/{quote(self.name)}", body)

    def close(self) -> None:
        """Shut the kernel down."""
        self.visitor.api("DELETE", f"sessions/{self.session}")


def printed(content: NotebookNode) -> str:
    """All that a notebook's cells printed."""
    return "".join(
        output.get("text", "") for cell in content.cells for output in cell.get("outputs", ()) if "text" in output
    )


def message_in(page: str) -> str:
    """The words of a hub's page, without its frame."""
    body = re.sub(r"(?s)<(script|style|nav|head|noscript)\b.*?</\1>", " ", page)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())[:600]
