"""The document of the faults is what the tests saw, and each row has its test."""

import re
from pathlib import Path

import pytest
from fault_matrix import DOCUMENT, FAULTS, ROOT, UNSEEN, document, masked, read

SCENARIOS = Path(__file__).with_name("scenarios.py")


def test_the_document_has_every_fault_and_nothing_else():
    """What its second column says is compared in the tests that see it."""
    assert DOCUMENT.read_text(encoding="utf-8") == document(read())
    assert read().keys() - {"fault", "---"} == {fault.what for fault in FAULTS.values()}
    assert UNSEEN not in read().values()


@pytest.mark.parametrize("name", FAULTS)
def test_every_row_names_a_test_that_sees_the_fault(name):
    file, _, test = FAULTS[name].test.partition("::")
    source = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {test}(" in source
    seeing = SCENARIOS.read_text(encoding="utf-8") if file.endswith("test_full_disks.py") else source
    assert re.search(rf'"{name}"', seeing)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"{ROOT}/workspace\nx", "CHECKOUT/workspace x"),
        ("at 127.0.0.1:4711", "at 127.0.0.1:PORT"),
        ("The end of its log:\nI1123\nE1123\nStart it again", "The end of its log: … Start it again"),
        ("a | b * <c>", r"a \| b \* &lt;c>"),
        ("servers/0123456789ab/server.log", "servers/ID/server.log"),
    ],
)
def test_what_differs_from_run_to_run_is_not_shown(message, shown):
    assert masked(message) == shown
