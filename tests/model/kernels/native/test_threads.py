"""The threads that run a step together, under random work and, where a race would show, under ThreadSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.kernels.native import build
from model.kernels.native.library import ThreadPlan, native_library

STRESS = Path(__file__).with_name("threads_stress.cpp")


@pytest.fixture(scope="module", params=["plain", "thread"])
def stress(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of random regions, as it is or with a sanitizer in it."""
    program = tmp_path_factory.mktemp("stress") / request.param
    flags = ["-std=c++20", "-O2", "-g", "-pthread", f"-I{build.FOLDER}"]
    flags += [] if request.param == "plain" else [f"-fsanitize={request.param}"]
    sources = [build.FOLDER / "threads.cpp", STRESS]
    subprocess.run([*build.compiler(), *flags, *sources, "-o", program], check=True)
    return program


@pytest.mark.parametrize("awake_microseconds", [0, 100])
@pytest.mark.parametrize("num_threads", [1, 2, 3, 4])
def test_random_regions(stress: Path, num_threads: int, awake_microseconds: int) -> None:
    numbers = (num_threads, 1000, awake_microseconds, 10 * num_threads + awake_microseconds)
    result = subprocess.run(
        [stress, *map(str, numbers)],
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]


def test_pinned_threads_stay_on_their_cores() -> None:
    """In a process of its own, whose every thread but the first is the library's."""
    core = max(os.sched_getaffinity(0))
    program = f"""
import os
from model.kernels.native.library import ThreadPlan, native_library
before = set(os.listdir("/proc/self/task"))
native_library().use_threads(ThreadPlan(3, (0, {core}, {core})))
native_library().threads
new = set(os.listdir("/proc/self/task")) - before
while any(os.sched_getaffinity(int(thread)) != {{{core}}} for thread in new):
    os.sched_yield()
print(len(new))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert shown.stdout == "2\n"


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_there_are_as_many_threads_as_planned() -> None:
    library = native_library()
    plan = library.plan
    try:
        library.use_threads(ThreadPlan(1))
        assert library.threads
        alone = num_threads()
        library.use_threads(ThreadPlan(4))
        assert num_threads() == alone, "they are made on first use"
        assert library.threads
        assert num_threads() == alone + 3
        library.use_threads(ThreadPlan(2))
        assert num_threads() == alone, "those of another plan have ended"
    finally:
        library.use_threads(plan)
