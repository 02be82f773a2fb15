"""A learner shares her progress with her instructor, when she says so, and until she says stop.

``python -m lab_utils workshop share --name ANNA FOLDER`` writes a consent beside her lab book. From then on the check
of an exercise and the end of an experiment bring her file in FOLDER up to date. Without that consent nothing is kept
or written anywhere.
"""

import contextlib
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from lab_utils.files import replacing
from lab_utils.workshop_progress import CHECKS, CONSENT, clean_name, progress_of, read_small, to_json

WHAT = (
    "Shared are your name, which lessons you ran and when, how many of those runs failed, and for each exercise how "
    "often you tried and whether it is right; never an answer, a prompt, a text or a figure."
)
ID = re.compile("[0-9a-f]{32}")
OFFER = "LAB_PROGRESS"  # where a hub offers a folder; it is no consent


@dataclass(frozen=True)
class Consent:
    """Who shares, and where: `id` names the file in `folder`, `book` is the file name of the lab book."""

    id: str
    name: str
    folder: str
    book: str

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.id) or not Path(self.folder).is_absolute() or not isinstance(self.book, str):
            raise ValueError(f"consent {self}: expected an id of 32 hex digits, an absolute folder and a book's name")
        clean_name(self.name)

    @property
    def file(self) -> Path:
        """Her progress file."""
        return Path(self.folder) / f"{self.id}.progress.json"


def share(book: Path, name: str, folder: Path) -> Consent:
    """Write down that this learner shares her progress, and share it.

    Parameters
    ----------
    book : Path
        Her lab book; the consent stands beside it.
    name : str
        1 to 40 characters, as the instructor shall see it.
    folder : Path
        A folder that the instructor made.

    Raises
    ------
    ValueError
        The name does not do, or there is no such folder.
    OSError
        A file cannot be written.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected the one that your instructor made for this workshop")
    with _locked(book) as known:
        consent = Consent(known.id if known else uuid.uuid4().hex, clean_name(name), str(folder), book.name)
        if known and known.file != consent.file:
            known.file.unlink(missing_ok=True)
        _replace(book.with_name(CONSENT), json.dumps(asdict(consent), indent=1) + "\n", mode=0o600)
    _write_progress(book)
    return consent


def stop_sharing(book: Path) -> bool:
    """Remove the consent, what was shared, and the outcomes that were kept for it; False if there was no consent."""
    with _locked(book) as consent:
        shared = [consent.file] if consent else []
        for path in (*shared, book.with_name(CHECKS), book.with_name(CONSENT)):  # the consent alone says what is shared
            path.unlink(missing_ok=True)
    return consent is not None


def read_consent(book: Path) -> Consent | None:
    """The consent beside a lab book; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return Consent(**json.loads(read_small(book.with_name(CONSENT))))
    return None


def record_check(book: Path, exercise: str, right: bool) -> None:
    """Keep the outcome of a check, and share it; only where the learner agreed, and never in her way."""
    outcome = {"at": datetime.now(timezone.utc).isoformat(), "exercise": exercise, "right": right}
    with contextlib.suppress(OSError), _locked(book) as consent:
        if consent is not None:
            with open(book.with_name(CHECKS), "a", encoding="utf-8") as file:
                file.write(json.dumps(outcome) + "\n")
    refresh(book)


def refresh(book: Path) -> None:
    """Bring the shared file up to date, if the learner agreed. What goes wrong is not worth stopping a lesson for."""
    with contextlib.suppress(OSError, ValueError):
        _write_progress(book)


def _write_progress(book: Path) -> None:
    with _locked(book) as consent:  # two notebooks of one learner: the later reading is written last
        if consent is not None:
            _replace(consent.file, to_json(progress_of(consent.name, book)), mode=0o644)


@contextlib.contextmanager
def _locked(book: Path) -> Iterator[Consent | None]:
    """One notebook or command of this learner at a time; gives the consent as it stands then."""
    path = book.with_name(CONSENT)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # without a consent there is nothing to wait for
            while True:
                lock = stack.enter_context(open(path, "rb", opener=_at_once))
                fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    break  # else it was replaced while this waited: the new one is the lock
        yield read_consent(book)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe in its place must not stop a lesson


def _replace(path: Path, text: str, mode: int) -> None:
    with replacing(path, mode) as file:
        file.write(text.encode())


def offered(environment: Mapping[str, str]) -> tuple[str, str]:
    """The folder and the name that a hub offers, empty where it does not."""
    return environment.get(OFFER, ""), environment.get("JUPYTERHUB_USER", "")
