"""Files are written whole or not at all; links stay, and pipes and devices are not replaced."""

import os
import re
import stat
import tempfile
from pathlib import Path

import pytest

from lab_utils.files import replacing, write_whole, writing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new folder" / "file"
    write_whole(path, b"first")
    with pytest.raises(TypeError), writing(path) as file:
        file.writelines([b"half", None])
    assert path.read_bytes() == b"first"
    assert names(path.parent) == ["file"]


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with writing(path) as one, writing(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"  # it ended last
    assert names(tmp_path) == ["file"]


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_whole(pipe, b"text")
        assert reader.read() == b"text"
        write_whole(link, b"more")
        assert reader.read() == b"more"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert link.is_symlink()
    assert names(tmp_path) == ["link", "pipe"]


def test_a_pipe_without_a_name_is_written_to(tmp_path):
    """As /dev/stdout is where the output goes to another program."""
    read_end, write_end = os.pipe()
    (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{write_end}")
    write_whole(tmp_path / "stdout", b"text")
    os.close(write_end)
    with open(read_end, "rb") as reader:
        assert reader.read() == b"text"
    assert (tmp_path / "stdout").is_symlink()


def test_a_file_without_a_name_is_written_to(tmp_path):
    """As /dev/stdout is where a test captures the output."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with tempfile.TemporaryFile(dir=tmp_path) as output:
        (folder / "stdout").symlink_to(f"/proc/self/fd/{output.fileno()}")
        write_whole(folder / "stdout", b"text")
        assert output.read() == b"text"
    assert names(tmp_path) == ["folder"]
    assert names(folder) == ["stdout"]


def test_a_device_is_written_to_and_stays(tmp_path):
    """A terminal of its own: where this fails, no device of the machine is lost."""
    main_end, terminal = os.openpty()
    try:
        write_whole(Path(os.ttyname(terminal)), b"text")
        assert os.read(main_end, 10) == b"text"
    finally:
        os.close(main_end)
        os.close(terminal)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    if there:
        write_whole(target, b"old")
    link.symlink_to("elsewhere/file")
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["file"]


def test_where_others_may_write_a_link_is_replaced(tmp_path):
    link, private = tmp_path / "link", tmp_path / "private"
    private.write_bytes(b"private")
    link.symlink_to(private)
    with replacing(link, 0o640) as file:
        file.write(b"new")
    assert (link.is_symlink(), link.read_bytes(), private.read_bytes()) == (False, b"new", b"private")
    assert stat.S_IMODE(link.stat().st_mode) == 0o640


def test_a_failure_names_the_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent" / "file"):
        with pytest.raises(OSError, match="cannot be written") as caught, replacing(path) as file:
            file.write(b"x")
        assert str(caught.value).startswith(f"{path} cannot be written: ")
    with pytest.raises(OSError, match=f"^{re.escape(str(tmp_path))} cannot be written: Is a directory"):
        write_whole(tmp_path, b"x")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=f"^{re.escape(str(loop))} cannot be written: "):
        write_whole(loop, b"x")
    assert names(tmp_path) == ["loop"]
