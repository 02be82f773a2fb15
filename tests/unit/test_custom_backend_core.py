"""The C++ core under sanitizers, and the faults that they must see."""

import os
import re
import subprocess

import pytest

from lab_utils import custom_backend
from lab_utils.memory_faults import FAULTS, diff, drive

REPORTED_IDS = [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]
CANNOT_LOOK = "LeakSanitizer cannot look: this machine does not let it trace the process"


@pytest.fixture(scope="module")
def leaks_are_seen() -> bool:
    """Whether LeakSanitizer works here; where the process may not be traced, it says that it does not."""
    return drive("latest", [64]).verdict != CANNOT_LOOK


def test_core(leaks_are_seen):
    """The tests of the core pass: with AddressSanitizer and UBSan, with ThreadSanitizer, and as shipped."""
    command = ["make", f"--jobs={len(os.sched_getaffinity(0))}", f"--directory={custom_backend.FOLDER}", "check"]
    clean = {name: value for name, value in os.environ.items() if name not in custom_backend.OUTER_MAKE}
    done = subprocess.run(
        [*command, f"CXX={custom_backend.compiler()}", f"LEAKS={int(leaks_are_seen)}"],
        env=clean,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    printed = "\n".join(line for line in done.stdout.splitlines() if " -c -o " not in line) + "\n" + done.stderr
    assert done.returncode == 0, printed
    outcomes = re.findall(r"^(\d+) tests, (\d+) checks, (\d+) failed$", done.stdout, re.MULTILINE)
    assert len(outcomes) == 3, printed
    for tests, checks, failed in outcomes:
        assert (int(tests) >= 90, int(checks) >= 10_000, int(failed)) == (True, True, 0), printed


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_fault_fits_the_sources(fault):
    """What a fault replaces stands once in the tracked source, and its difference is small."""
    source = (custom_backend.SOURCES / fault.file).read_text(encoding="utf-8")
    assert source.count(fault.old) == 1
    changed = [line for line in diff(fault).splitlines() if re.match(r"[+-](?![+-])", line)]
    assert 2 <= len(changed) <= 8
    assert fault.text() == source.replace(fault.old, fault.new) != source


@pytest.mark.parametrize(
    ("rung", "lengths"),
    [
        ("release", [1, 2, 4, 8, 16, 32, 64, 128]),
        ("replace", [1, 2, 3, 1, 1, 1, 1, 1]),
        ("latest", [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_shipped_rungs_are_clean(rung, lengths):
    """The sources as they are: each stream has the lengths of its rung, and nobody has anything to say."""
    result = drive(rung, REPORTED_IDS, streams=2)
    assert result.lengths == (tuple(lengths),) * 2
    assert (result.verdict, result.bytes, result.report) in [("clean", 0, ""), (CANNOT_LOOK, 0, result.report)]


def test_growth_is_no_leak():
    """The buffer of rung append grows from stream to stream, and stays reachable: LeakSanitizer finds nothing lost."""
    result = drive("append", REPORTED_IDS, streams=2)
    assert result.lengths == (tuple(2**n for n in range(8)), tuple(2**n for n in range(8, 16)))
    assert result.heap[1][-1] > 100 * result.heap[0][-1]
    assert result.verdict in ("clean", CANNOT_LOOK)
    assert result.bytes == 0


def test_leak(leaks_are_seen):
    """A stream that nobody deletes is found at the end, with the place where it was made; all messages were sent."""
    result = drive("latest", REPORTED_IDS, streams=3, fault=FAULTS["leak"])
    assert result.lengths == ((1,) * 8,) * 3
    if not leaks_are_seen:
        assert result.verdict == CANNOT_LOOK
        return
    assert result.verdict == "LeakSanitizer: detected memory leaks"
    assert re.fullmatch(r"Engine::submit, token_stream/engine\.cc:\d+", result.where)
    twice = drive("latest", REPORTED_IDS, streams=6, fault=FAULTS["leak"])
    assert twice.bytes == 2 * result.bytes > 0  # each stream loses the same


def test_use_after_free():
    """A stream that is used after it was freed ends the process at once, after the last message of the first stream."""
    result = drive("latest", REPORTED_IDS, streams=3, fault=FAULTS["use_after_free"])
    assert result.verdict == "heap-use-after-free"
    assert result.lengths == ((1,) * 8,)
    assert re.fullmatch(r"Stream::\w+, token_stream/stream\.(cc|h):\d+", result.where)
    assert re.fullmatch(r"Engine::end, token_stream/engine\.cc:\d+", result.freed)
    assert re.fullmatch(r"Engine::submit, token_stream/engine\.cc:\d+", result.allocated)
    assert result.bytes == 8


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_reports_are_neutral(fault):
    """A report holds no address, process id or path of a machine, so it can stand in a notebook."""
    report = drive("latest", REPORTED_IDS, fault=fault).report
    assert report
    assert not re.search(r"0x[0-9a-f]|==\d+==|/(?!engine|stream|drive)|@src", report), report
    assert str(custom_backend.PROJECT) not in report


def test_without_a_sanitizer_a_leak_passes_unseen():
    """The same leak, and nobody looks."""
    result = drive("latest", REPORTED_IDS, fault=FAULTS["leak"], sanitize=None)
    assert (result.verdict, result.lengths, result.report) == ("nobody looked", ((1,) * 8,), "")


def test_in_band_errors_are_told():
    """A message that the node refuses ends the stream with an error, and nothing is lost by that."""
    result = drive("append", REPORTED_IDS, streams=3)
    assert [len(one) for one in result.lengths] == [8, 8, 5]
    assert result.errors[0].startswith("message 6 would hold 2,097,152 ids")
    assert result.verdict in ("clean", CANNOT_LOOK)


@pytest.mark.parametrize(
    ("rung", "ids", "streams", "words"),
    [("next", [64], 1, "rung"), ("latest", [], 1, "0 ids"), ("latest", [64], 0, "0 streams")],
)
def test_drives_that_cannot_be(rung, ids, streams, words):
    """A drive that makes no sense is refused with words."""
    with pytest.raises(ValueError, match=words):
        drive(rung, ids, streams=streams)
