"""The build of the native library, on a folder that holds its dispatch and variants without any code."""

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.kernels.native import build

EMPTY_VARIANT = """
#include "header.h"
#include "kernels.h"
namespace janus::JANUS_VARIANT {
extern const Kernels kernels;
const Kernels kernels = {};
}  // namespace janus::JANUS_VARIANT
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "native"
    folder.mkdir()
    for header in build.headers():
        shutil.copy(header, folder)
    shutil.copy(build.FOLDER / "dispatch.cpp", folder)
    (folder / "variant.cpp").write_text(EMPTY_VARIANT)
    (folder / "header.h").touch()
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.delenv("CXX", raising=False)
    return folder


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[[], set[str]]:
    """Builds strictly; which objects that made."""

    def times() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.o")}

    def make() -> set[str]:
        before = times()
        library = build.build(work=tmp_path / "work", is_strict=True)
        assert library == folder / build.LIBRARY
        return {name for name, time in times().items() if before.get(name) != time}

    return make


@pytest.fixture
def compiler_that_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts lines of shell before the compiler."""

    def use(lines: str) -> None:
        wrapper = tmp_path / "wrapped-g++"
        wrapper.write_text(f'#!/bin/sh\n{lines}\nexec g++ "$@"\n')
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(wrapper))

    return use


def kernel_names(folder: Path, tmp_path: Path) -> list[str]:
    """What a library can run here; loaded under a name of its own, because a process loads a file once."""
    copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}.so"
    shutil.copy(folder / build.LIBRARY, copy)
    function = ctypes.CDLL(str(copy)).janus_kernel_names
    function.restype = ctypes.c_char_p
    return function().decode().split()


IS_X86 = platform.machine() == "x86_64"
VARIANTS = {f"variant.{name}" for name in build.VARIANTS if IS_X86 or name == "portable"}


def test_what_did_not_change_is_not_compiled_again(folder: Path, make: Callable[[], set[str]]) -> None:
    assert make() == VARIANTS | {"dispatch"}
    built = (folder / build.LIBRARY).stat().st_mtime_ns
    assert make() == set()
    assert (folder / build.LIBRARY).stat().st_mtime_ns == built
    os.utime(folder / "header.h")
    assert make() == VARIANTS
    os.utime(folder / "dispatch.cpp")
    assert make() == {"dispatch"}
    assert (folder / build.LIBRARY).stat().st_mtime_ns != built


def test_other_flags_compile_everything_again(
    folder: Path, make: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert make() == VARIANTS | {"dispatch"}


def test_a_library_that_was_removed_is_linked_again(folder: Path, make: Callable[[], set[str]]) -> None:
    make()
    (folder / build.LIBRARY).unlink()
    assert make() == set()
    assert (folder / build.LIBRARY).exists()


def test_a_new_file_is_found(folder: Path, make: Callable[[], set[str]]) -> None:
    make()
    (folder / "more.cpp").write_text("namespace { [[maybe_unused]] int more; }\n")
    assert make() == {"more"}


@pytest.mark.skipif(not IS_X86, reason="elsewhere there is the portable variant alone")
def test_a_compiler_that_does_not_know_an_instruction_set(
    folder: Path, make: Callable[[], set[str]], compiler_that_says: Callable[[str], None], tmp_path: Path
) -> None:
    compiler_that_says('case "$*" in *-mavx512bf16*) echo "error: what is avx512bf16?" >&2; exit 1;; esac')
    assert make() == VARIANTS - {"variant.avx512_bf16"} | {"dispatch"}
    names = kernel_names(folder, tmp_path)
    assert "avx512_bf16" not in names
    assert names[-1] == "portable"


def test_another_kind_of_machine_gets_the_portable_variant(
    folder: Path, make: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert make() == {"variant.portable", "dispatch"}
    assert kernel_names(folder, tmp_path) == ["portable"]


def test_a_mistake_is_told_and_keeps_the_library_of_before(folder: Path, make: Callable[[], set[str]]) -> None:
    make()
    (folder / "header.h").write_text("int unfinished(\n")
    with pytest.raises(build.BuildError, match=r"g\+\+ could not compile variant for \w+: .*error: "):
        make()
    assert (folder / build.LIBRARY).exists()


def test_a_warning_is_an_error_for_developers_alone(
    folder: Path, make: Callable[[], set[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "more.cpp").write_text("namespace { int unused; }\n")
    with pytest.raises(build.BuildError, match=r"could not compile more: .*unused"):
        make()
    assert build.install(work=tmp_path / "work") == f"The native library is built: {folder / build.LIBRARY}"


def test_without_a_compiler_the_reason_is_kept_until_there_is_one(
    folder: Path, make: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make()
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    why = "there is no C++ compiler (g++, c++ or clang++, or another that CXX names)"
    said = build.install(work=tmp_path / "work")
    assert said == f"The native library is NOT built, models will run through torch alone: {why}"
    assert (folder / build.REASON).read_text() == f"{why}\n"
    assert not (folder / build.LIBRARY).exists(), "a library of other sources must not serve"
    monkeypatch.setenv("PATH", path)
    assert build.install(work=tmp_path / "work") == f"The native library is built: {folder / build.LIBRARY}"
    assert not (folder / build.REASON).exists()


def test_a_compiler_that_was_named_and_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-99 -m64")
    with pytest.raises(build.BuildError, match=r"there is no C\+\+ compiler g\+\+-99 -m64, which CXX names"):
        build.compiler()


def test_the_command_says_what_it_takes() -> None:
    shown = subprocess.run(
        [sys.executable, build.__file__, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (shown.returncode, shown.stderr) == (2, "usage: build.py [--install]\n")
