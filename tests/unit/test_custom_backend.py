"""The Python face of the C++ build: what is compiled when, into which folder, and what is said when it fails.

Most tests build three small sources in a project of their own: the compiler is the real one, and it takes no time.
"""

import ctypes
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab_utils import custom_backend, launch
from lab_utils.custom_backend import Build, BuildError, build, compile_command, compiler
from lab_utils.launch import extra_backends
from lab_utils.sources import find_source

ANSWER_H = '#pragma once\nextern "C" int answer();\nconstexpr int kAnswer = 42;\n'
ANSWER_CC = '#include "answer.h"\n\nint answer() { return kAnswer; }\n'
OTHER_CC = '#include "answer.h"\n\nint twice() { return 2 * kAnswer; }\n'
OWN = {"token_stream/other.cc": OTHER_CC, "token_text/text.cc": OTHER_CC}
SOURCES = {"answer.h": ANSWER_H, "answer.cc": ANSWER_CC, **OWN}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two backends with a shared source and one each; its path holds white space, as a home may."""
    home = tmp_path / "a project"
    sources = home / "custom_backend" / "src"
    for name, text in SOURCES.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    shutil.copy(custom_backend.FOLDER / "Makefile", sources.parent)
    (sources.parent / "tests").mkdir()
    monkeypatch.setattr(custom_backend, "PROJECT", home)
    monkeypatch.setattr(custom_backend, "FOLDER", sources.parent)
    monkeypatch.setattr(custom_backend, "SOURCES", sources)
    for name in ("CXX", "TRITON_INCLUDE_DIR", "MAKEFLAGS", "MARCH", "BUILD", "SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    return home


def answer_of(built: Build) -> int:
    """What both libraries answer; loaded from copies, because the loader knows a path that it has seen."""
    answers = set()
    for library in built.libraries:
        with tempfile.TemporaryDirectory() as folder:
            answers.add(ctypes.CDLL(shutil.copy(library, folder)).answer())
    (answer,) = answers
    return answer


# --- what is built, and when ------------------------------------------------------------------------------------------


def test_a_build_is_where_the_server_looks_for_it(project):
    built = build()
    assert built.folder == project / "custom_backend" / "build" / "backends"
    assert built.libraries[0] == built.folder / "token_stream" / "libtriton_token_stream.so"
    assert extra_backends([built.folder], find_source("wheel")) == [library.parent for library in built.libraries]
    assert (built.fresh, answer_of(built)) == (True, 42)
    assert built.seconds > 0


def type_again(built: Build, project: Path) -> None:
    """Remove the libraries and make them with the commands as shown."""
    for library in built.libraries:
        library.unlink()
    subprocess.run("\n".join(map(compile_command, custom_backend.BACKENDS)), shell=True, check=True, cwd=project)


def test_the_command_as_shown_makes_the_same_library(project):
    built = build()
    first, second = map(compile_command, custom_backend.BACKENDS)
    assert first == (
        "g++ -std=c++17 -O3 -march=native -fPIC -Wall -Wextra -Werror -Icustom_backend/src -shared "
        "-o custom_backend/build/backends/token_stream/libtriton_token_stream.so "
        "custom_backend/src/*.cc custom_backend/src/token_stream/*.cc -pthread -ldl"
    )
    assert second == first.replace("token_stream", "token_text")
    type_again(built, project)
    assert answer_of(built) == 42


def test_nothing_is_compiled_where_nothing_changed(project):
    first = build()
    when = first.libraries[0].stat().st_mtime_ns
    again = build()
    assert not again.fresh
    assert (again.folder, again.libraries) == (first.folder, first.libraries)
    assert again.libraries[0].stat().st_mtime_ns == when


def another_processor(sources: Path, patch: pytest.MonkeyPatch) -> None:
    """As if the folder had been carried to another machine."""
    stamp = sources.parent / "build" / "compiler"
    stamp.write_text(stamp.read_text().replace("-march=native", "-march=native of another machine"))


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "a source": lambda sources, _: (sources / "answer.cc").write_text(ANSWER_CC.replace("kAnswer", "kAnswer + 0")),
    "a header": lambda sources, _: (sources / "answer.h").write_text(ANSWER_H.replace("42", "43")),
    "a new source": lambda sources, _: (sources / "new.cc").write_text("int more() { return 1; }\n"),
    "a source of the second backend": lambda sources, _: (sources / "token_text/text.cc").write_text("int x;\n"),
    "a source is gone": lambda sources, _: (sources / "token_stream/other.cc").unlink(),
    "the compiler": lambda _, patch: patch.setenv("CXX", "c++"),
    "the processor": another_processor,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_compiled(what, project, monkeypatch):
    build()
    CHANGES[what](custom_backend.SOURCES, monkeypatch)
    changed = build()
    assert changed.fresh
    assert answer_of(changed) == (43 if what == "a header" else 42)
    assert not build().fresh


def test_two_builds_at_once_compile_once_and_both_have_the_library(project, tmp_path, monkeypatch):
    calls, script = tmp_path / "calls", tmp_path / "counting"
    script.write_text(f'#!/bin/sh\necho call >> "{calls}"\nexec g++ "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with ThreadPoolExecutor(4) as threads:
        all_built = list(threads.map(lambda _: build(), range(4)))
    assert sorted(built.fresh for built in all_built) == [False, False, False, True]
    assert {built.libraries for built in all_built} == {all_built[0].libraries}
    assert calls.read_text().count("call") == 3 + 2  # three sources, two libraries
    build(patches={"token_text/text.cc": OTHER_CC.replace("2 *", "3 *")})
    assert calls.read_text().count("call") == 5 + 1 + 2  # only the source that changed


def test_a_checkout_that_cannot_be_written_is_built_in_the_users_state_folder(project, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "STATE", tmp_path / "state")
    monkeypatch.setattr(custom_backend.os, "access", lambda path, mode: not Path(path).is_relative_to(project))
    assert build().folder == tmp_path / "state" / "custom_backend" / "backends"
    assert not (project / "custom_backend" / "build").exists()


# --- a learner's change -----------------------------------------------------------------------------------------------


def test_a_patch_is_compiled_elsewhere_and_the_tracked_sources_stay(project):
    tracked = build()
    patched = build(patches={"answer.cc": ANSWER_CC.replace("kAnswer", "7")})
    assert (answer_of(patched), answer_of(tracked)) == (7, 42)
    assert patched.folder != tracked.folder
    assert (custom_backend.SOURCES / "answer.cc").read_text() == ANSWER_CC
    assert not build().fresh
    assert not build(patches={"answer.cc": ANSWER_CC.replace("kAnswer", "7")}).fresh
    assert build(patches={"answer.cc": ANSWER_CC.replace("kAnswer", "8")}).folder != patched.folder


def test_a_patched_header_is_seen_by_all_sources(project):
    assert answer_of(build(patches={"answer.h": ANSWER_H.replace("42", "43")})) == 43


def test_a_patch_goes_on_top_of_the_sources_as_they_are_now(project):
    patch = {"answer.cc": ANSWER_CC.replace("kAnswer", "kAnswer + 1")}
    assert answer_of(build(patches=patch)) == 43
    (custom_backend.SOURCES / "answer.h").write_text(ANSWER_H.replace("42", "50"))
    assert answer_of(build(patches=patch)) == 51


def test_a_patch_of_an_unknown_file_is_refused(project):
    for name in ("anwser.cc", "../src/answer.cc", "other.cc"):
        with pytest.raises(ValueError, match=rf"no source '{name}'; .* has: answer\.cc, answer\.h, token_stream/other"):
            build(patches={name: ""})


# --- what is said when it fails ---------------------------------------------------------------------------------------


def test_an_error_shows_the_compilers_own_words(project):
    before = build()
    (custom_backend.SOURCES / "answer.cc").write_text(ANSWER_CC.replace("kAnswer", "kAnwser"))
    with pytest.raises(BuildError) as caught:
        build()
    lines = str(caught.value).splitlines()
    assert lines[0] == "the build failed:"
    assert lines[1].startswith("src/answer.cc:3:23: error: 'kAnwser' was not declared in this scope")
    assert "git diff custom_backend" in lines[-1]
    assert answer_of(before) == 42, "the library that was there is gone"


def test_an_error_in_a_patch_says_that_the_tracked_sources_are_as_they_were(project):
    with pytest.raises(BuildError, match=r"(?s)answer\.cc:3:.*error: .*your text, in a copy\. Correct it"):
        build(patches={"answer.cc": ANSWER_CC.replace(";", "", 1)})


def test_a_flood_of_errors_is_cut(project):
    with pytest.raises(BuildError) as caught:
        build(patches={"answer.cc": "".join(f"int f{n}() {{ return x{n}; }}\n" for n in range(200))})
    assert 10 < len(str(caught.value).splitlines()) < 30
    assert "answer.cc:1:" in str(caught.value)


def test_an_error_of_the_linker_is_shown_and_the_library_that_was_there_stays(project):
    before = build()
    (custom_backend.SOURCES / "token_stream" / "other.cc").write_text(
        '#include "answer.h"\nint answer() { return 1; }\n'
    )
    with pytest.raises(BuildError, match=r"multiple definition of .answer"):
        build()
    assert answer_of(before) == 42


def test_a_warning_is_an_error(project):
    with pytest.raises(BuildError, match="error: unused variable 'unused'"):
        build(patches={"token_stream/other.cc": OTHER_CC.replace("return", "int unused = 3; return")})


# --- the command ------------------------------------------------------------------------------------------------------


def programs(folder: Path, *names: str) -> str:
    """A folder of programs with these names, for PATH."""
    folder.mkdir()
    for name in names:
        (folder / name).touch(0o755)
    return str(folder)


def test_the_compiler_is_the_users_or_the_first_that_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    for present, chosen in [(("g++", "clang++"), "g++"), (("clang++", "c++"), "clang++")]:
        monkeypatch.setenv("PATH", programs(tmp_path / chosen, *present))
        assert compiler() == chosen
    monkeypatch.setenv("CXX", "clang++ -v")
    assert compiler() == "clang++ -v"
    monkeypatch.setenv("CXX", "icc")
    with pytest.raises(BuildError, match="the variable CXX says 'icc', but there is no such command"):
        compiler()


def test_no_compiler_is_said_with_advice(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        BuildError, match=r"no C\+\+ compiler: none of g\+\+, clang\+\+ is on PATH.*apt-get install g\+\+"
    ):
        build()


def test_builds_for_a_sanitizer_or_another_processor_are_kept_apart(project):
    plain, sanitized, portable = build(), build(sanitize="address"), build(march="x86-64-v3")
    assert b"__asan" in sanitized.libraries[0].read_bytes()
    assert b"__asan" not in plain.libraries[0].read_bytes()
    assert len({plain.folder, sanitized.folder, portable.folder}) == 3
    assert not build().fresh
    patched = build(sanitize="address", patches={"answer.cc": ANSWER_CC.replace("kAnswer", "7")})
    assert b"__asan" in patched.libraries[0].read_bytes()


def test_the_official_headers_are_used_where_they_are(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BuildError, match=f"TRITON_INCLUDE_DIR is {tmp_path}, which has no triton/core/tritonbackend.h"):
        build()
    header = tmp_path / "triton" / "core" / "tritonbackend.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define OFFICIAL 43\n")
    official = '#include "triton/core/tritonbackend.h"\n' + ANSWER_CC.replace("kAnswer", "OFFICIAL")
    assert answer_of(build(patches={"answer.cc": official})) == 43


def test_the_makefile_and_the_command_as_shown_say_the_same(monkeypatch):
    """The Makefile compiles each source by itself and links them: same flags, sources and place."""
    for name in ("CXX", "MARCH", "BUILD", "SANITIZE", "TRITON_INCLUDE_DIR", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", "CXX=g++"],
        cwd=custom_backend.FOLDER,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in printed.stdout.splitlines() if line.startswith("g++ ")]
    theirs = {word for line in lines for word in line}
    for name in custom_backend.BACKENDS:
        library = f"build/backends/{name}/libtriton_{name}.so.new"
        ours = shlex.split(compile_command(name))
        (objects,) = ([word for word in line if word.endswith(".o")] for line in lines if library in line)
        sources = [file for word in ours if word.endswith(".cc") for file in custom_backend.PROJECT.glob(word)]
        assert {Path(made).stem for made in objects} == {file.stem for file in sources}
        assert flags_of(theirs) == {flag.replace("custom_backend/", "") for flag in flags_of(ours)}


def flags_of(words: Iterable[str]) -> set[str]:
    """All flags but those that are about objects, which only the Makefile names."""
    return {word for word in words if word.startswith("-")} - {"-c", "-o", "-MMD", "-MP"}
