"""A state folder and a mark of their own for these tests; at the end, nothing of theirs may be left."""

from collections.abc import Iterator

import pytest
from leftovers import nothing_left_behind


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with nothing_left_behind(tmp_path_factory.mktemp("state"), "the tests of faults"):
        yield
