"""Measure the way from nothing running to the first streamed token: in a process of its own, started for it."""

import json
import subprocess
import sys
import time

MODEL, PROMPT = "ensemble_latest", "Pancakes. Ingredients:"
STEPS = ("start Python, import", "start tritonserver", "first token")


def measure() -> list[tuple[str, float, float]]:
    """The steps as (label, start, end), in seconds since the process was asked for.

    Raises
    ------
    RuntimeError
        The process failed; the message holds what it printed.
    """
    began = time.monotonic()  # one clock for all processes of a Linux machine
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"could not measure the first token:\n{done.stderr}")
    times = [0.0, *(moment - began for moment in json.loads(done.stdout))]
    return list(zip(STEPS, times, times[1:], strict=False))


def main() -> None:
    """Stream one token; print the moments when the imports were done, the server ready, and the token there."""
    from lab_utils.client import iter_stream
    from lab_utils.server import start_server

    moments = [time.monotonic()]
    with start_server([MODEL]) as server:
        moments.append(time.monotonic())
        for _ in iter_stream(server, MODEL, PROMPT, max_tokens=1):
            moments.append(time.monotonic())
    print(json.dumps(moments))


if __name__ == "__main__":
    main()
