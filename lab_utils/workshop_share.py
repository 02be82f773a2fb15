"""A learner shares her progress with her instructor, when she says so, and until she says stop.

``python -m lab_utils workshop share --name ANNA FOLDER`` writes a consent beside her lab book. From then on the check
of an exercise and the end of an experiment bring her file in FOLDER up to date. Without that consent nothing is kept
or written anywhere.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from lab_utils.workshop_progress import CHECKS, CONSENT, ProgressError, clean_name, progress_of, read_small, to_json

WHAT = (
    "Shared are your name, which lessons you ran and when, how many of those runs failed, and for each exercise how "
    "often you tried and whether it is right; never an answer, a prompt, a text or a figure."
)
OFFER = "LAB_PROGRESS"  # where a hub offers a folder; it is no consent


@dataclass(frozen=True)
class Consent:
    """Who shares, and where: `id` names the file in `folder`, `book` is the file name of the lab book."""

    id: str
    name: str
    folder: str
    book: str

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
    known = read_consent(book)
    if known and Path(known.folder) != folder:
        known.file.unlink(missing_ok=True)
    consent = Consent(known.id if known else uuid.uuid4().hex, clean_name(name), str(folder), book.name)
    _replace(book.with_name(CONSENT), json.dumps(asdict(consent), indent=1) + "\n")
    _write_progress(book, consent)
    return consent


def stop_sharing(book: Path) -> bool:
    """Remove the consent, what was shared, and the outcomes that were kept for it; False if there was no consent."""
    consent = read_consent(book)
    for path in (book.with_name(CONSENT), book.with_name(CHECKS), *([consent.file] if consent else [])):
        path.unlink(missing_ok=True)
    return consent is not None


def read_consent(book: Path) -> Consent | None:
    """The consent beside a lab book; None where there is none that can be read."""
    with contextlib.suppress(OSError, ProgressError, ValueError, TypeError):
        return Consent(**json.loads(read_small(book.with_name(CONSENT))))
    return None


def record_check(book: Path, exercise: str, right: bool) -> None:
    """Keep the outcome of a check, and share it; only where the learner agreed, and never in her way."""
    if book.with_name(CONSENT).exists():
        outcome = {"at": datetime.now(timezone.utc).isoformat(), "exercise": exercise, "right": right}
        with contextlib.suppress(OSError), open(book.with_name(CHECKS), "a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
        refresh(book)


def refresh(book: Path) -> None:
    """Bring the shared file up to date, if the learner agreed. What goes wrong is not worth stopping a lesson for."""
    consent = read_consent(book)
    if consent is not None:
        with contextlib.suppress(OSError, ValueError):
            _write_progress(book, consent)


def _write_progress(book: Path, consent: Consent) -> None:
    with open(book.with_name(CONSENT), encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two notebooks of one learner: the later reading is written last
        _replace(consent.file, to_json(progress_of(consent.name, book)), mode=0o644)


def _replace(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file in one step: whoever reads it meanwhile sees the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def offered(environment: Mapping[str, str]) -> tuple[str, str]:
    """The folder and the name that a hub offers, empty where it does not."""
    return environment.get(OFFER, ""), environment.get("JUPYTERHUB_USER", "")
