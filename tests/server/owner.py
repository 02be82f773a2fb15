"""A process that owns a server, as a notebook's kernel does. It says what happens, a line each, and waits.

Usage: ``python owner.py``, or ``python owner.py fork``: then it forks a child that outlives it.
"""

import contextlib
import os
import signal
import sys
import time

from lab_utils import server as lab
from lab_utils.client import stream
from lab_utils.launch import Launch

CHILD_SECONDS = 60


def say(*words: object) -> None:
    print(*words, flush=True)


def main(fork: bool) -> None:
    start_supervised = lab.start_supervised

    def watched(launch: Launch):
        supervisor = start_supervised(launch)
        say("spawned", launch.id, launch.ports.http, launch.ports.grpc, launch.ports.metrics)
        return supervisor

    lab.start_supervised = watched
    server = None
    with contextlib.suppress(KeyboardInterrupt):
        server = lab.start_server(["ensemble_latest"])
    if fork and os.fork() == 0:
        time.sleep(CHILD_SECONDS)
        os._exit(0)
    greeting = "ready" if server else "interrupted while starting"
    while True:
        try:
            word, greeting = greeting, ""
            say(word) if word else obey(server, sys.stdin.readline().strip())
        except KeyboardInterrupt:
            say("interrupted")


def obey(server: lab.TritonServer, command: str) -> None:
    if command == "stream":
        say(stream(server, "ensemble_latest", "Pancakes. Ingredients:").text)
    if command == "stop":
        server.stop()
        say("stopped")


signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's setting would be inherited
main(fork="fork" in sys.argv)
