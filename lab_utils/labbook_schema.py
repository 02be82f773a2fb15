"""The file of the lab book: its tables, its versions, and transactions that several processes may make at once.

The file is SQLite in WAL mode. Rows are only ever added: triggers refuse to change or delete one.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from lab_utils.errors import ToldShortly
from lab_utils.files import disk_problem

WAIT_SECONDS = 30.0  # for other writers; a transaction takes milliseconds
APPLICATION_ID = 0x4C42_4F4B  # in the file's header: this SQLite file is a lab book


class BookError(ToldShortly, OSError):
    """The file of a lab book cannot be used; the message says why and what to do."""


def _append_only(table: str, key: str) -> tuple[str, ...]:
    """Triggers that keep every row of a table as it was written."""
    refuse = f"BEGIN SELECT RAISE(ABORT, 'the lab book is append-only: rows of {table} stay as they are'); END"
    taken = " AND ".join(f"{column} = NEW.{column}" for column in key.split(", "))
    return (
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
        # INSERT OR REPLACE deletes the old row without asking the trigger above.
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {taken}) {refuse}",
    )


_OWNER = "experiment INTEGER NOT NULL REFERENCES experiment"
_ENTRY = f"id INTEGER PRIMARY KEY AUTOINCREMENT, {_OWNER}, recorded TEXT NOT NULL"

_VERSION_1 = (
    """CREATE TABLE experiment (id INTEGER PRIMARY KEY AUTOINCREMENT, lesson TEXT NOT NULL, title TEXT NOT NULL,
    started TEXT NOT NULL, predicted TEXT, configuration TEXT NOT NULL)""",
    f"CREATE TABLE series ({_ENTRY}, label TEXT NOT NULL)",
    """CREATE TABLE observation (series INTEGER NOT NULL REFERENCES series, iteration INTEGER NOT NULL,
    dims TEXT NOT NULL, bytes INTEGER, seconds REAL, PRIMARY KEY (series, iteration)) WITHOUT ROWID""",
    f"CREATE TABLE verdict ({_ENTRY}, text TEXT NOT NULL)",
    f"CREATE TABLE figure ({_ENTRY}, name TEXT NOT NULL, alt TEXT NOT NULL, png BLOB NOT NULL)",
    "CREATE TABLE ending (experiment INTEGER PRIMARY KEY REFERENCES experiment, ended TEXT NOT NULL, failure TEXT)",
    *_append_only("experiment", "id"),
    *_append_only("series", "id"),
    *_append_only("observation", "series, iteration"),
    *_append_only("verdict", "id"),
    *_append_only("figure", "id"),
    *_append_only("ending", "experiment"),
)

_VERSION_2 = (
    "ALTER TABLE experiment ADD COLUMN server TEXT",
    "ALTER TABLE experiment ADD COLUMN source TEXT",
    "ALTER TABLE experiment ADD COLUMN device TEXT",
    "ALTER TABLE experiment ADD COLUMN lab_commit TEXT",
    "ALTER TABLE series ADD COLUMN unit TEXT NOT NULL DEFAULT 'elements'",
    "ALTER TABLE ending ADD COLUMN seconds REAL",
    f"CREATE TABLE number ({_ENTRY}, name TEXT NOT NULL, value NUMERIC NOT NULL, unit TEXT NOT NULL)",
    f"CREATE TABLE note ({_ENTRY}, text TEXT NOT NULL)",
    *_append_only("number", "id"),
    *_append_only("note", "id"),
    *(
        f"CREATE INDEX {table}_of ON {table} (experiment)"
        for table in ("series", "verdict", "figure", "number", "note")
    ),
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2)
"""Statements from each version to the next: 1 is what was predicted and measured; 2 adds where it ran, units, numbers
and notes. A change of the tables is one more entry here; those that exist are never edited."""

CURRENT = len(MIGRATIONS)


@contextlib.contextmanager
def transaction(path: Path, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the book for one short transaction, which is kept whole or not at all.

    A book that does not exist, or has an older version, is made or brought up to date first.

    Parameters
    ----------
    path : pathlib.Path
        The file. Its folder is made if need be.
    write : bool
        Whether rows are added. Writers wait for each other; readers wait for nobody.

    Raises
    ------
    BookError
        The file is not a lab book, is of a newer version, or cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_open(path)) as connection:
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection
            connection.execute("COMMIT")
    except BookError:
        raise
    except (sqlite3.Error, OSError, OverflowError) as error:  # the last: a number beyond SQLite's 64 bits
        raise BookError(_explain(path, error)) from error


def insert(connection: sqlite3.Connection, table: str, columns: Mapping[str, object]) -> int:
    """Add a row and return its number."""
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    return connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(columns.values())).lastrowid


def _open(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        _prepare(connection, path)
    except sqlite3.OperationalError:
        connection.close()
        if os.access(path.parent, os.W_OK) or not _is_at_rest(path):
            raise
        # WAL needs files beside the book, also to read. In a read-only folder the book is read as it is.
        connection = _connect(path, "?immutable=1")
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, options: str = "") -> sqlite3.Connection:
    uri = path.absolute().as_uri() + options
    # None: this module says itself where transactions begin and end.
    connection = sqlite3.connect(uri, timeout=WAIT_SECONDS, isolation_level=None, uri=True)
    connection.row_factory = sqlite3.Row
    return connection


def _is_at_rest(path: Path) -> bool:
    """Whether the book exists and nothing that was written is still outside its main file."""
    return path.exists() and path.stat().st_size > 0 and not path.with_name(path.name + "-wal").exists()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no book, make a new one, or bring an old one up to date."""
    version = _checked_version(connection, path)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")  # safe against kill; a power cut may lose the last rows
    with contextlib.suppress(sqlite3.OperationalError):  # busy: the next one does it. Without WAL a book is as safe
        connection.execute("PRAGMA journal_mode = WAL")
    if version < CURRENT:
        _migrate(connection, path)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have done it while this one waited.
    for statements in MIGRATIONS[_checked_version(connection, path) :]:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {CURRENT}")
    connection.execute("COMMIT")


def _checked_version(connection: sqlite3.Connection, path: Path) -> int:
    """The book's version, 0 for a file with nothing in it."""
    application, version, tables = _identity(connection)
    if application != APPLICATION_ID and (application or version or tables):
        raise BookError(_not_a_book(path, "it is another program's SQLite file"))
    if version > CURRENT:
        raise BookError(
            f"{path} is a lab book of version {version}, made by a newer lab; this lab writes version {CURRENT}. "
            "The file was left as it is. Update the lab (git pull), or set LAB_BOOK to another file"
        )
    return version


def _identity(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Application id, version and number of tables, asked in one go: another process may be making the book."""
    question = """SELECT (SELECT application_id FROM pragma_application_id),
        (SELECT user_version FROM pragma_user_version), (SELECT count(*) FROM sqlite_master)"""
    return tuple(connection.execute(question).fetchone())


def _not_a_book(path: Path, reason: str) -> str:
    return f"{path} is not a lab book: {reason}. It was left as it is. Set LAB_BOOK to another file, or move this one"


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
        return _not_a_book(path, "it is no SQLite file")
    if full := disk_problem(path.parent) if path.parent.exists() else "":
        return f"lab book {path} cannot be used: {full}. Free space there, or set LAB_BOOK to another file"
    reason = f"{error.strerror} ({error.filename})" if isinstance(error, OSError) and error.strerror else str(error)
    return f"lab book {path} cannot be used: {reason}. Check the folder and the disk, or set LAB_BOOK to another file"
