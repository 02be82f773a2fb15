"""Files that the lab writes for its user: whole or not at all, and a failure says which file and what to do."""

import contextlib
import errno
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LITTLE = 2**20  # bytes: with less, it is the disk that is at fault
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file in one step, its folder too: whoever reads it meanwhile sees the old or the new one, whole.

    A link stays, and what it leads to is written; a pipe or a device is written to as it is.

    Raises
    ------
    OSError
        It cannot be written; the message names the file, and nothing of it is left.
    """
    with _named(path), _opened(path) as file:
        yield file


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file in one step, in a folder where others may write too: what is there is replaced, a link as well.

    Parameters
    ----------
    path : Path
        The file; its folder exists.
    mode : int, optional
        Who may read it, such as 0o644; by default what the umask leaves.

    Raises
    ------
    OSError
        It cannot be written; the message names the file, and nothing of it is left.
    """
    with _named(path), _replacing(path, mode) as file:
        yield file


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {_reason(error)}") from None


def _opened(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        regular = stat.S_ISREG(path.stat().st_mode)  # of what a link leads to, even without a name as /dev/stdout may
        if not regular or not target.exists():
            return path.open("wb")
    target.parent.mkdir(parents=True, exist_ok=True)
    return _replacing(target)


@contextlib.contextmanager
def _replacing(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.new")  # threads may write one path
    try:
        with temporary.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write these bytes; see `writing`."""
    with writing(path) as file:
        file.write(content)


def save_figure(figure: "Figure", path: Path) -> None:
    """Save a figure in the format that the file's name says, at 150 dots an inch; see `writing`.

    Raises
    ------
    OSError
        It cannot be written.
    ValueError
        There is no such format.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or None, dpi=150)
    write_whole(path, content.getvalue())


def disk_problem(folder: Path) -> str:
    """Say that the disk of a folder is full; empty where there is room."""
    free = shutil.disk_usage(folder).free
    return f"the disk that holds {folder} is full: {free // 1024:,} KiB are free" if free < LITTLE else ""


def _reason(error: OSError) -> str:
    if error.errno in FULL:
        return f"{error.strerror}. Free space on that disk, or choose a place on another one"
    return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
