"""The library as Python finds it: which variant, which threads, and why there is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import NativeLibraryError
from model.kernels.native import build
from model.kernels.native.library import NativeLibrary, native_library

HERE = build.FOLDER / build.LIBRARY


def flags_of_this_machine() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(set(line.split()[2:]) for line in lines if line.startswith("flags"))


def test_the_machine_says_which_variants_it_can_run() -> None:
    """Against what the system says of the processor; it writes some names in another way."""
    there = {flag.replace("_", "") for flag in flags_of_this_machine()}
    assert native_library().kernel_names() == [
        name for name, needs in build.VARIANTS.items() if there.issuperset(needs)
    ]


def test_the_best_variant_is_chosen() -> None:
    library = NativeLibrary(HERE)
    assert library.variant == library.kernel_names()[0]


@pytest.mark.parametrize("name", native_library().kernel_names())
def test_a_variant_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_KERNEL_VARIANT", name)
    assert native_library.__wrapped__().variant == name


def test_another_file_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.so"
    other.symlink_to(HERE)
    monkeypatch.setenv("JANUS_NATIVE_LIBRARY", str(other))
    assert native_library.__wrapped__().path == other


@pytest.mark.parametrize("name", ["avx1024", "avx2_", "native"])
def test_a_variant_that_is_none(name: str) -> None:
    with pytest.raises(NativeLibraryError, match=rf"kernel variant '{name}': this machine can run .*portable"):
        NativeLibrary(HERE, name)


def test_a_missing_library_says_why(tmp_path: Path) -> None:
    with pytest.raises(NativeLibraryError, match=r"there is no native library .*none\.so: `make native` builds it"):
        NativeLibrary(tmp_path / "none.so")
    (tmp_path / build.REASON).write_text("there is no C++ compiler\n")
    with pytest.raises(NativeLibraryError, match=r"there is no native library .*none\.so: there is no C\+\+ compiler$"):
        NativeLibrary(tmp_path / "none.so")


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(NativeLibraryError, match=r"the native library can't be loaded: .*text\.so"):
        NativeLibrary(tmp_path / "text.so")


def test_a_library_older_than_its_callers() -> None:
    with pytest.raises(NativeLibraryError, match="has no janus_of_tomorrow: build it again with `make native`"):
        native_library().declare("janus_of_tomorrow", None)


def test_more_threads_than_the_system_has() -> None:
    """In a process of its own, that may have few; those that were made before the first that wasn't have ended."""
    program = """
import os, resource
from model.errors import NativeLibraryError
from model.kernels.native.library import ThreadPlan, native_library
library = native_library()
before = len(os.listdir("/proc/self/task"))
# Each thread's stack is 8 MiB of address space.
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, -1))
library.use_threads(ThreadPlan(1000))
try:
    library.threads
except NativeLibraryError as error:
    print(error)
assert len(os.listdir("/proc/self/task")) == before
library.use_threads(ThreadPlan(2))
assert library.threads
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert (shown.stdout, shown.returncode) == ("the system has no 1000 threads for a step\n", 0), shown.stderr


def test_a_child_of_fork_has_threads_of_its_own() -> None:
    """The parent's are not there; a step on them would never end."""
    program = """
import os, signal, torch
from model.kernels.native.arena import Arena
from model.kernels.native.library import ThreadPlan, native_library
from model.kernels.native.matrix import FLOAT32, PackedMatrix, Source, product
library = native_library()
library.use_threads(ThreadPlan(3))
matrix = PackedMatrix(Source.of(torch.eye(64)), FLOAT32, Arena())
x = torch.randn(5, 64)
assert torch.equal(product([matrix], None, x), x)
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(0 if torch.equal(product([matrix], None, x), x) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert shown.stdout == "0\n", shown.stderr
