"""How far a learner is, from her own lab book and the outcomes of her exercises; read without changing either.

Nothing here is about anybody who did not ask for it: see `lab_utils.workshop_share`.
"""

import contextlib
import json
import os
import re
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from lab_utils.labbook_schema import APPLICATION_ID
from lab_utils.labbook_text import cut, visible

LESSON = re.compile(r"(\d\d)(?: |$)")  # how an experiment of a lesson begins
EXERCISE = re.compile(r"\d\d-[a-z][a-z0-9-]{0,39}")
CONSENT = "share_progress.json"  # beside the lab book; see workshop_share
CHECKS = "checks.jsonl"  # beside it: one line for each checked answer, without the answer
SHARED = "*.progress.json"
LARGEST = 2**20  # bytes of a file that somebody else wrote; a learner's whole workshop has some ten thousand
NAME_LENGTH = 40
SURROGATE = re.compile("[\ud800-\udfff]")
NOTHING, WORKING, STUCK, QUIET, GONE = "nothing yet", "at work", "stuck", "quiet", "gone"
BOOK_QUESTION = """SELECT lesson, started, ended, failure FROM experiment
    LEFT JOIN ending ON ending.experiment = experiment.id ORDER BY experiment.id"""
BOOK_TABLES = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('experiment', 'ending')"


class ProgressError(ValueError):
    """A file of a learner cannot be used; the message says which, why and what to do."""


@dataclass(frozen=True)
class Visit:
    """A lesson ("02") with its recorded runs; `last` is the latest beginning or end of one, UTC."""

    lesson: str
    runs: int
    failed: int
    last: datetime


@dataclass(frozen=True)
class Tried:
    """An exercise ("02-gib"): `tries` checked answers, `wrong` of them since the last right one, and the last time."""

    exercise: str
    tries: int
    wrong: int
    right: bool
    last: datetime


@dataclass(frozen=True)
class Progress:
    """Where one learner is. This is all that is ever shared."""

    name: str
    lessons: tuple[Visit, ...]
    exercises: tuple[Tried, ...]

    @property
    def last(self) -> datetime | None:
        """The latest sign of life; None before the first."""
        return max((one.last for one in (*self.lessons, *self.exercises)), default=None)

    @property
    def lesson(self) -> str:
        """The lesson of the latest sign of life, such as "02"; empty before the first."""
        seen = [(one.last, one.lesson) for one in self.lessons]
        return max(seen + [(one.last, one.exercise[:2]) for one in self.exercises], default=(None, ""))[1]

    @property
    def latest(self) -> Tried | None:
        """The exercise that was tried last."""
        return max(self.exercises, key=lambda one: one.last, default=None)

    def right(self, lesson: str = "") -> int:
        """How many exercises were right at least once, of one lesson or of all."""
        return sum(one.right for one in self.exercises if one.exercise.startswith(lesson))


@dataclass(frozen=True)
class Limits:
    """When a learner counts as stuck or gone: wrong answers in a row, and minutes without a sign of life."""

    wrong: int = 3
    quiet: float = 20.0
    gone: float = 120.0

    def __post_init__(self) -> None:
        if self.wrong < 1 or not 0 < self.quiet < self.gone:
            raise ValueError(
                f"wrong {self.wrong}, quiet {self.quiet}, gone {self.gone}; expected 1 or more, 0 < quiet < gone"
            )


# --- from a learner's own files ------------------------------------------------------------------------------------


def progress_of(name: str, book: Path) -> Progress:
    """Read a lab book and the outcomes beside it.

    Parameters
    ----------
    name : str
        What the learner wants to be called.
    book : Path
        Her lab book; it may be in use, and need not exist yet.

    Raises
    ------
    ProgressError
        A file is there, but cannot be read or is something else.
    """
    return Progress(name, tuple(_visits(book)), tuple(_tried(book.with_name(CHECKS))))


def _visits(book: Path) -> Iterator[Visit]:
    runs: dict[str, list[tuple[bool, datetime]]] = {}
    try:
        for lesson, started, ended, failure in _book_rows(book):
            if match := LESSON.match(lesson):  # experiments of her own are nobody's business
                runs.setdefault(match[1], []).append((failure is not None, _moment(ended or started)))
    except (ValueError, TypeError) as error:
        raise ProgressError(f"lab book {book} cannot be read: {error}. It is left out") from error
    for lesson, found in sorted(runs.items()):
        yield Visit(lesson, len(found), sum(failed for failed, _ in found), max(last for _, last in found))


def _book_rows(book: Path) -> list[tuple]:
    book = Path(os.path.realpath(book))  # SQLite's own files stand beside what a link leads to
    files = [_is_file(book.with_name(book.name + suffix)) for suffix in ("", "-wal", "-shm", "-journal")]
    if not files[0]:
        return []
    try:
        with contextlib.closing(_read_only(book)) as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if application != APPLICATION_ID or connection.execute(BOOK_TABLES).fetchone() != (2,):
                raise ProgressError("it is not a lab book. Name a learner's own folder")
            return connection.execute(BOOK_QUESTION).fetchall()
    except (sqlite3.Error, OSError) as error:
        raise ProgressError(f"{error}. Check its permissions") from error


def _is_file(path: Path) -> bool:
    """Whether it is there; to open a pipe would wait for ever."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ProgressError(f"{path.name} is no regular file; remove it")
        return True
    return False


def _read_only(book: Path) -> sqlite3.Connection:
    """Open a book and leave no file beside it: one at rest is read as it is, one in use by the files of its WAL."""
    in_use = book.with_name(f"{book.name}-wal").exists()
    options = "mode=ro" if in_use else "mode=ro&immutable=1"
    connection = sqlite3.connect(f"{book.absolute().as_uri()}?{options}", uri=True, timeout=5.0)
    connection.execute("PRAGMA trusted_schema = OFF")  # a book of somebody else may hold anything
    return connection


def _tried(checks: Path) -> Iterator[Tried]:
    outcomes: dict[str, list[tuple[bool, datetime]]] = {}
    for exercise, right, at in _outcomes(checks):
        outcomes.setdefault(exercise, []).append((right, at))
    for exercise, found in sorted(outcomes.items()):
        rights = [right for right, _ in found]
        wrong = rights[::-1].index(True) if any(rights) else len(rights)
        yield Tried(exercise, len(rights), wrong, any(rights), max(at for _, at in found))


def _outcomes(checks: Path) -> Iterator[tuple[str, bool, datetime]]:
    """Every whole line; the last one may be half written."""
    if not checks.exists():
        return
    for line in read_small(checks).splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(line)
            yield _name(record, "exercise", EXERCISE), record["right"] is True, _moment(record["at"])


# --- from a shared folder ------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> tuple[list[Progress], list[str]]:
    """Read what learners shared in a folder: their progress files, or the folders of learners who agreed.

    Parameters
    ----------
    folder : Path
        Holds progress files (``workshop share`` writes them), or is the folder of a lab book, or holds such folders.

    Returns
    -------
    (list of Progress, list of str)
        One for each learner, and a line for each file that could not be used.

    Raises
    ------
    ValueError
        The folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected one that learners share their progress in")
    found, problems = [], []
    agreed = [*folder.glob(CONSENT), *folder.glob(f"*/{CONSENT}")]
    for path in sorted([*folder.glob(SHARED), *agreed]):
        try:
            found.append(_from_consent(path) if path.name == CONSENT else from_json(read_small(path)))
        except (ProgressError, OSError) as error:
            problems.append(visible(f"{path.name}: {error}"))
    return found, problems


def _from_consent(path: Path) -> Progress:
    try:
        record = json.loads(read_small(path))
        name, book = clean_name(record["name"]), path.with_name(Path(record["book"]).name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProgressError(f"not a learner's consent: {error}") from error
    if book.is_symlink():
        raise ProgressError(f"{book.name} is a link, which may lead to somebody else's; it is left out")
    return progress_of(name, book)


def latest_of_each(found: Iterable[Progress]) -> list[Progress]:
    """One of each name: the one with the latest sign of life. A learner may be seen in two places."""
    never = datetime.min.replace(tzinfo=timezone.utc)
    return list({one.name: one for one in sorted(found, key=lambda one: one.last or never)}.values())


def read_small(path: Path) -> str:
    """The text of a regular file of at most `LARGEST` bytes.

    Raises
    ------
    ProgressError
        It is a link, a pipe, too large, or no text.
    """
    status = path.lstat()  # a link in a shared folder may lead anywhere
    if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
        raise ProgressError(f"expected a file of at most {LARGEST:,} bytes; remove it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ProgressError("it is no text; remove it") from error


def to_json(progress: Progress) -> str:
    """What a progress file holds."""
    return json.dumps(asdict(progress), default=datetime.isoformat, indent=1) + "\n"


def from_json(text: str) -> Progress:
    """Read a progress file back.

    Raises
    ------
    ProgressError
        It holds something else.
    """
    try:
        record = json.loads(text)
        visits = tuple(map(_visit_from, record["lessons"]))
        tried = tuple(map(_tried_from, record["exercises"]))
        return Progress(clean_name(record["name"]), visits, tried)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProgressError(
            f"not a progress file ({type(error).__name__}); remove it, or have it shared again"
        ) from error


def _tried_from(record: dict) -> Tried:
    name, counts = _name(record, "exercise", EXERCISE), (_count(record, "tries"), _count(record, "wrong"))
    return Tried(name, *counts, record["right"] is True, _moment(record["last"]))


def _visit_from(record: dict) -> Visit:
    counts = _count(record, "runs"), _count(record, "failed")
    return Visit(_name(record, "lesson", LESSON), *counts, _moment(record["last"]))


def _name(record: dict, key: str, pattern: re.Pattern) -> str:
    if not pattern.fullmatch(record[key]):
        raise ValueError(f"no such {key}")
    return record[key]


def _count(record: dict, name: str) -> int:
    if type(record[name]) is not int or not 0 <= record[name] < 10**6:
        raise ValueError(f"{name} is no count")
    return record[name]


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without its zone")
    return moment


def clean_name(name: object) -> str:
    """A learner's name as it may stand in a table.

    Raises
    ------
    ValueError
        It is empty or too long, or no text; a lone surrogate is none, and could not be printed.
    """
    text = visible(name).replace("\n", " ").strip() if isinstance(name, str) else ""
    if not text or len(text) > NAME_LENGTH or SURROGATE.search(text):
        raise ValueError(f"the name is {cut(str(name), 60)!r}; expected 1 to {NAME_LENGTH} characters")
    return text


# --- who is where --------------------------------------------------------------------------------------------------


def state(one: Progress, now: datetime, limits: Limits) -> tuple[str, str]:
    """One of `NOTHING`, `WORKING`, `STUCK`, `QUIET`, `GONE`, and the same in words for an instructor."""
    if one.last is None:
        return NOTHING, NOTHING
    idle, latest = minutes(one, now), one.latest
    if idle >= limits.gone:
        return GONE, GONE
    if latest is not None and latest.wrong >= limits.wrong:
        return STUCK, f"stuck on {latest.exercise}: wrong {latest.wrong} times in a row"
    if idle >= limits.quiet:
        return QUIET, f"quiet: nothing recorded for {idle:.0f} min"
    return WORKING, WORKING


def minutes(one: Progress, now: datetime) -> float:
    """Minutes since the last sign of life; 0 where clocks disagree."""
    return max(timedelta(0), now - one.last).total_seconds() / 60 if one.last else 0.0


def rows(found: Iterable[Progress], names: Iterable[str], now: datetime, limits: Limits) -> list[dict[str, object]]:
    """One record for each learner, those who need somebody first; `names` are those of all exercises."""
    order, sizes = (STUCK, QUIET, WORKING, NOTHING, GONE), Counter(name[:2] for name in names)
    records = [_row(one, sizes[one.lesson], now, limits) for one in found]
    return sorted(records, key=lambda row: (order.index(row["state"]), row["lesson"], row["name"]))


def _row(one: Progress, exercises: int, now: datetime, limits: Limits) -> dict[str, object]:
    kind, words = state(one, now, limits)
    return {
        "name": one.name,
        "lesson": one.lesson,
        "right": one.right(one.lesson) if one.lesson else 0,
        "exercises": exercises,
        "right_in_all": one.right(),
        "minutes": round(minutes(one, now), 1) if one.last else None,
        "state": kind,
        "words": words,
    }


def lines(records: Sequence[dict[str, object]]) -> list[list[object]]:
    """The records as rows of a table."""
    return [
        [
            row["name"],
            row["lesson"] or "-",
            f"{row['right']} of {row['exercises']}",
            row["right_in_all"],
            None if row["minutes"] is None else round(row["minutes"]),
            row["words"],
        ]
        for row in records
    ]


HEADERS = ("learner", "lesson", "right there", "right in all", "min ago", "state")
