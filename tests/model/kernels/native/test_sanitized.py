"""The native library's tests once more, with one that AddressSanitizer and UndefinedBehaviorSanitizer watch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.kernels.native import build

ROOT = Path(__file__).parents[4]
FLAGS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS")
# These make libraries and threads of their own, in processes with limits that a sanitizer can't keep.
ELSEWHERE = ("test_build.py", "test_library.py", "test_threads.py")


def runtime(name: str) -> str:
    """Where the compiler has a library; Python was not linked to it, so it has to be there before."""
    command = [*build.compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_test_touches_what_it_must_not(tmp_path: Path) -> None:
    library = build.build(tmp_path, tmp_path / "objects", flags=FLAGS, is_strict=True)
    options = ("-x", "-s", "-p", "no:faulthandler", "-o", "timeout=600", "-m", "not slow and not gpu", "-k", "native")
    elsewhere = [f"--ignore={Path(__file__).with_name(name)}" for name in ELSEWHERE]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *elsewhere, "tests/model/kernels", "tests/model/program"],
        cwd=ROOT,
        env=os.environ
        | {
            "JANUS_NATIVE_LIBRARY": str(library),
            "LD_PRELOAD": f"{runtime('libasan.so')}:{runtime('libstdc++.so.6')}",
            # Python frees little at its end, and torch hands memory from malloc to delete.
            "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_WAIT_POLICY": "PASSIVE",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[:8000]}"
