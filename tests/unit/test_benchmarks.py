"""What benchmarks/README.md shows is what benchmarks/results/ holds."""

import json
import re
import sys

import pytest

from lab_utils.server import MODEL_REPOSITORY

FOLDER = MODEL_REPOSITORY.parent / "benchmarks"


@pytest.fixture
def custom_backend(monkeypatch):
    """The benchmark as a module; its folder is on the path for as long as the test lasts."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import custom_backend

    yield custom_backend
    for name in ("custom_backend", "side_by_side"):
        sys.modules.pop(name, None)


def results() -> dict:
    return json.loads((FOLDER / "results" / "custom_backend.json").read_text(encoding="utf-8"))


def test_the_table_of_the_readme_is_that_of_the_results(custom_backend):
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- custom_backend -->\n(.*?)<!-- end -->", readme, re.DOTALL)
    assert shown, "the README has lost its table"
    assert shown[1] == custom_backend.markdown(results())


def test_the_words_below_the_table_hold():
    """One stream in C++: over three times Python's, and within a fifth of the ceiling."""
    one = results()["one_stream"]
    assert one["pipelines"]["all in C++"]["times_python"]["median"] > 3
    assert one["of_the_ceiling"]["median"] > 0.8
    many = results()["sixteen_streams"]["pipelines"]
    assert many["all in C++"]["client_us_per_token"]["median"] > many["all in C++"]["server_us_per_token"]["median"]


def test_rounds_take_turns(custom_backend):
    from side_by_side import in_turns, ratios, spread

    calls = []
    cases = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    found = in_turns(cases, 3)
    assert calls == ["a", "b"] + ["a", "b"] * 3, "each once to warm up, then in turns"
    assert found == {"a": [3, 5, 7], "b": [4, 6, 8]}
    assert (spread([3, 1, 2]).median, spread([3, 1, 2]).least, spread([3, 1, 2]).most) == (2, 1, 3)
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b").least == 2
