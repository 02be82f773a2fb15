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
    monkeypatch.setattr(custom_backend, "PROJECT", home)
    monkeypatch.setattr(custom_backend, "FOLDER", sources.parent)
    monkeypatch.setattr(custom_backend, "SOURCES", sources)
    for name in ("CXX", "TRITON_INCLUDE_DIR"):
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
    assert built.library == built.folder / "token_stream" / "libtriton_token_stream.so"
    assert extra_backends([built.folder], find_source("wheel")) == [library.parent for library in built.libraries]
    assert (built.fresh, built.warnings, answer_of(built)) == (True, (), 42)
    assert built.seconds > 0


def type_again(built: Build, project: Path) -> None:
    """Remove the libraries and make them with the commands as shown."""
    for library in built.libraries:
        library.unlink()
    subprocess.run(built.command, shell=True, check=True, cwd=project)


def test_the_command_as_shown_makes_the_same_library(project):
    built = build()
    first, second = built.command.splitlines()
    assert first == (
        "g++ -O3 -march=native -std=c++17 -Wall -Wextra -Werror -fPIC -Icustom_backend/src -shared "
        "-o custom_backend/build/backends/token_stream/libtriton_token_stream.so "
        "custom_backend/src/*.cc custom_backend/src/token_stream/*.cc -pthread -ldl"
    )
    assert second == first.replace("token_stream", "token_text")
    type_again(built, project)
    assert answer_of(built) == 42


def test_a_folder_of_ones_own_is_used_wherever_it_is(project, tmp_path):
    built = build(tmp_path / "some where" / "else")
    assert built.folder == tmp_path / "some where" / "else" / "backends"
    assert f"-o '{built.library}' custom_backend/src/*.cc custom_backend/src/token_stream/*.cc" in built.command
    assert not (project / "custom_backend" / "build").exists()


def test_sources_elsewhere_make_a_command_that_can_be_typed_too(project, tmp_path):
    """As in the state folder of a user whose name holds white space."""
    built = build(tmp_path / "some where", patches={"answer.cc": ANSWER_CC.replace("kAnswer", "7")})
    assert f"'{tmp_path}/some where/src'/*.cc" in built.command
    type_again(built, project)
    assert answer_of(built) == 7


def test_nothing_is_compiled_where_nothing_changed(project, monkeypatch):
    first = build()
    when = first.library.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")  # and so no compiler is needed
    again = build()
    assert (again.fresh, again.seconds, again.command) == (False, 0.0, first.command)
    assert (again.folder, again.library) == (first.folder, first.library)
    assert again.library.stat().st_mtime_ns == when


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "a source": lambda sources, _: (sources / "answer.cc").write_text(ANSWER_CC.replace("kAnswer", "kAnswer + 0")),
    "a header": lambda sources, _: (sources / "answer.h").write_text(ANSWER_H.replace("42", "43")),
    "a new source": lambda sources, _: (sources / "new.cc").write_text("int more() { return 1; }\n"),
    "a source of the second backend": lambda sources, _: (sources / "token_text/text.cc").write_text("int x;\n"),
    "a source is gone": lambda sources, _: (sources / "token_stream/other.cc").unlink(),
    "the compiler": lambda _, patch: patch.setenv("CXX", "c++"),
    "the flags": lambda _, patch: patch.setattr(custom_backend, "FLAGS", (*custom_backend.FLAGS, "-g")),
    "the processor": lambda _, patch: patch.setattr(custom_backend, "_processor", lambda: "flags: another"),
    "the library": lambda sources, _: (
        sources.parent / "build/backends/token_stream/libtriton_token_stream.so"
    ).touch(),
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
    build(patches={"text.cc": OTHER_CC.replace("2 *", "3 *")})
    assert calls.read_text().count("call") == 5 + 1 + 2  # only the source that changed


def test_warnings_that_are_no_errors_are_handed_over_and_kept(project):
    unused = {"other.cc": OTHER_CC.replace("return", "int unused = 3; return")}
    built = build(patches=unused, extra=["-Wno-error"])
    assert len(built.warnings) == 1
    assert built.warnings[0].startswith("token_stream/other.cc:3:")
    assert "unused variable 'unused'" in built.warnings[0]
    assert build(patches=unused, extra=["-Wno-error"]).warnings == built.warnings


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
    for name in ("anwser.cc", "../src/answer.cc", "swer.cc"):
        with pytest.raises(ValueError, match=rf"no source is named '{name}'; .* has: answer\.cc, answer\.h, token_str"):
            build(patches={name: ""})
    (custom_backend.SOURCES / "token_text" / "other.cc").write_text("")
    with pytest.raises(ValueError, match=r"two sources are named 'other\.cc'; .* has: token_stream/other\.cc, token_t"):
        build(patches={"other.cc": ""})
    assert build(patches={"token_text/other.cc": "int other;\n"}).fresh


# --- what is said when it fails ---------------------------------------------------------------------------------------


def test_an_error_shows_the_compilers_own_words(project):
    before = build()
    (custom_backend.SOURCES / "answer.cc").write_text(ANSWER_CC.replace("kAnswer", "kAnwser"))
    with pytest.raises(BuildError) as caught:
        build()
    lines = str(caught.value).splitlines()
    assert lines[0] == "g++ ended with exit status 1:"
    assert lines[1].startswith("answer.cc:3:23: error: 'kAnwser' was not declared in this scope")
    assert "git diff custom_backend/src" in lines[-1]
    assert answer_of(before) == 42, "the library that was there is gone"
    assert [file.name for file in before.library.parent.iterdir()] == [before.library.name]
    objects = list((project / "custom_backend" / "build" / "cache").iterdir())
    assert {file.suffix for file in objects} == {".o", ".txt"}


def test_an_error_in_a_patch_says_that_the_tracked_sources_are_as_they_were(project):
    with pytest.raises(BuildError, match=r"(?s)answer\.cc:3:.*error: .*custom_backend/src is as it was\. Correct the"):
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
        build(patches={"other.cc": OTHER_CC.replace("return", "int unused = 3; return")})


def test_no_sources_are_said(project, tmp_path):
    with pytest.raises(BuildError, match=rf"no C\+\+ source \(\*\.cc\) in {tmp_path}"):
        compile_command("x.so", tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------


def programs(folder: Path, *names: str) -> str:
    """A folder of programs with these names, for PATH."""
    folder.mkdir()
    for name in names:
        (folder / name).touch(0o755)
    return str(folder)


def test_the_compiler_is_the_users_or_the_first_that_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    for present, chosen in [(("g++", "clang++"), "g++"), (("clang++", "c++"), "clang++"), (("c++",), "c++")]:
        monkeypatch.setenv("PATH", programs(tmp_path / chosen, *present))
        assert compiler() == [chosen]
    monkeypatch.setenv("CXX", "c++ -v")
    assert compiler() == ["c++", "-v"]
    monkeypatch.setenv("CXX", "icc")
    with pytest.raises(BuildError, match="the variable CXX says 'icc', but there is no such command"):
        compiler()


def test_no_compiler_is_said_with_advice(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"no C\+\+ compiler: none of g\+\+, clang\+\+, .*apt-get install g\+\+"):
        build()


def test_sanitizers_and_further_flags_come_after_the_usual_ones(project):
    command = compile_command("a.so", backend="token_text", sanitize="address,undefined", extra=["-O0", "-DX=1"])
    assert command[:1] + command[1 + len(custom_backend.FLAGS) :] == [
        *("g++", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1", "-O0", "-DX=1"),
        *("-Icustom_backend/src", "-shared", "-o", "a.so"),
        *("custom_backend/src/answer.cc", "custom_backend/src/token_text/text.cc", "-pthread", "-ldl"),
    ]
    plain, sanitized, slow = build(), build(sanitize="address"), build(extra=["-O0"])
    assert b"__asan" in sanitized.library.read_bytes()
    assert b"__asan" not in plain.library.read_bytes()
    assert len({plain.folder, sanitized.folder, slow.folder}) == 3
    assert not build().fresh


def test_the_official_headers_are_used_where_they_are(project, tmp_path, monkeypatch):
    include = tmp_path / "include"
    monkeypatch.setattr(custom_backend, "NATIVE_INCLUDE", include)
    header = include / "triton" / "core" / "tritonbackend.h"
    header.parent.mkdir(parents=True)
    assert f"-I{include}" not in compile_command("a.so")
    header.touch()
    assert f"-I{include}" in compile_command("a.so")
    monkeypatch.setenv("TRITON_INCLUDE_DIR", str(tmp_path))
    with pytest.raises(BuildError, match=f"TRITON_INCLUDE_DIR is {tmp_path}, which has no triton/core/tritonbackend.h"):
        compile_command("a.so")


def test_the_makefile_says_the_same(monkeypatch):
    """It compiles each source by itself and links them; the flags, the sources and the library are the same."""
    for name in ("CXX", "MARCH", "BUILD", "TRITON_INCLUDE_DIR", "MAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory"],
        cwd=custom_backend.FOLDER,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [shlex.split(line) for line in printed.stdout.splitlines() if line.startswith(("g++ ", "c++ "))]
    theirs = {word for line in lines for word in line}
    for name in custom_backend.BACKENDS:
        library = f"build/backends/{name}/libtriton_{name}.so"
        ours = compile_command(custom_backend.FOLDER / library, backend=name)
        (objects,) = ([word for word in line if word.endswith(".o")] for line in lines if library in line)
        assert {Path(made).stem for made in objects} == {Path(word).stem for word in ours if word.endswith(".cc")}
        assert flags_of(theirs) == {flag.replace("custom_backend/", "") for flag in flags_of(ours)}


def flags_of(words: Iterable[str]) -> set[str]:
    """All flags but those that are about objects, which only the Makefile names."""
    return {word for word in words if word.startswith("-")} - {"-c", "-o", "-MMD"}
