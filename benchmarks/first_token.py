"""From nothing running to the first streamed token: the lab, and PyTriton's own API, each in a process started for it.

The steps are the same on both sides: start Python and import, start the server with the model, stream one token. Both
continue the same prompt with the same weights, on the server of the same wheel.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

from pytriton_server import DECODED, environment, serving
from side_by_side import Row, Spread, in_turns, main, ratios, spreads

from lab_utils import first_token
from lab_utils.client import stream
from lab_utils.server import start_server
from lab_utils.survey import tokens_of

ROUNDS = 5
LAB, PYTRITON = "lab", "pytriton"


def lab_steps() -> list[float]:
    """Seconds of each step in the lab."""
    return [end - start for _, start, end in first_token.measure()]


def pytriton_steps(prompt_ids: list[int], expected: int) -> list[float]:
    """Seconds of each step with PyTriton's own API, which must stream the token that is expected."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(Path(folder, "moments")), json.dumps(prompt_ids)]
        began = time.monotonic()  # one clock for all processes of a Linux machine
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        if done.returncode != 0:
            raise RuntimeError(f"PyTriton did not stream a token:\n{done.stderr[-2000:]}")
        found = json.loads(Path(folder, "moments").read_text(encoding="utf-8"))
    assert found["token"] == expected, f"PyTriton's first token is {found['token']}, the lab's is {expected}"
    times = [began, *found["moments"]]
    return [end - start for start, end in pairwise(times)]


def serve_one_token(path: Path, prompt_ids: list[int]) -> None:
    """What the process for PyTriton does: write down its first token, and the moments after each step."""
    import numpy as np
    from pytriton.client import DecoupledModelClient
    from pytriton.triton import Triton  # noqa: F401 (a user's program imports it here)

    moments = [time.monotonic()]
    with serving([DECODED]) as url:
        moments.append(time.monotonic())
        inputs = {"PROMPT_IDS": np.array(prompt_ids, dtype=np.int32), "MAX_TOKENS": np.array([1], dtype=np.int32)}
        with DecoupledModelClient(f"grpc://{url}", DECODED) as client:
            for response in client.infer_sample(**inputs):
                moments.append(time.monotonic())
                token = int(response["TOKEN_ID"][0])
    path.write_text(json.dumps({"moments": moments, "token": token}), encoding="utf-8")


def first_token_of_the_lab() -> tuple[list[int], int]:
    """The ids of the prompt that `lab_utils.first_token` streams, and the first id that the lab answers with."""
    with start_server([first_token.MODEL]) as server:
        [[token]] = stream(server, first_token.MODEL, first_token.PROMPT, max_tokens=1).ids
    return tokens_of(first_token.PROMPT), token


def measure() -> dict:
    """Both in turns; the steps of every round."""
    prompt_ids, token = first_token_of_the_lab()
    found = in_turns({LAB: lab_steps, PYTRITON: lambda: pytriton_steps(prompt_ids, token)}, ROUNDS)
    totals = {name: [sum(steps) for steps in rounds] for name, rounds in found.items()}
    return {
        "rounds": ROUNDS,
        "total": spreads(totals),
        "part": asdict(ratios(totals, LAB, PYTRITON)),
        "steps": {name: by_step(rounds) for name, rounds in found.items()},
    }


def by_step(rounds: list[list[float]]) -> dict[str, dict]:
    """The seconds of each step, over all rounds."""
    return spreads(dict(zip(first_token.STEPS, map(list, zip(*rounds, strict=True)), strict=True)))


def rows(results: dict) -> list[Row]:
    """The lab's time as a part of PyTriton's."""
    mine, other = (results["total"][name]["median"] for name in (LAB, PYTRITON))
    return [
        Row(
            what="first streamed token, from nothing running",
            against="PyTriton's own API, the same token from the same wheel",
            reach="at most 0.5 times",
            measured=f"{mine:.2f} s, PyTriton {other:.2f} s",
            figure=Spread(**results["part"]),
            bound=0.5,
        )
    ]


def remarks(results: dict) -> str:
    """The steps of both."""
    lines = ["| seconds, median (least to most) | the lab | PyTriton |", "|---|---|---|"]
    for step in first_token.STEPS:
        mine, other = (Spread(**results["steps"][name][step]) for name in (LAB, PYTRITON))
        lines.append(f"| {step} | {mine} | {other} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve_one_token(Path(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        main(__file__)
