"""A state folder and a mark of their own for these tests; at the end, nothing of theirs may be left."""

import time
import uuid
from collections.abc import Iterator

import pytest
from leftovers import RUN_MARK, SHARED_MEMORY, marked_processes, until_none

from lab_utils import launch, stale


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every process that a test starts inherits the mark; none may outlive the tests, and no shared memory either."""
    began, mark, state = time.time(), uuid.uuid4().hex, tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRITON_GRPC_URL", "TRITON_SOURCE", "TRITONSERVER_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv(RUN_MARK, mark)
        patch.setenv("XDG_STATE_HOME", str(state))
        patch.setenv("LAB_BOOK", str(state / "book.sqlite3"))
        patch.setattr(launch, "STATE", state / "triton-ensemble-lab")
        yield
    until_none(lambda: marked_processes(RUN_MARK, mark), "the tests of faults")
    until_none(lambda: ownerless(began), "the tests of faults, in /dev/shm")


def ownerless(began: float) -> list[str]:
    """Files of this user's lab in /dev/shm, made since `began`, of servers that no process belongs to."""
    owned = {server.id for server in stale.lab_servers()}
    found = []
    for path in SHARED_MEMORY.glob(f"{launch.SHM_PREFIX}*"):
        match = stale.SERVER_ID.match(path.name)
        if match and match[1] not in owned and path.exists() and path.stat().st_ctime >= began:
            found.append(path.name)
    return found
