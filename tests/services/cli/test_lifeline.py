"""A program that ends with its parent, as real processes."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from services.cli.lifeline import tied

PARENT = """
import os, subprocess, sys
from services.cli.lifeline import tied
child = subprocess.Popen(
    tied((sys.executable, "-c", "import time; print('there', flush=True); time.sleep(60)")), stdout=subprocess.PIPE
)
if sys.argv[1] == "later":
    assert child.stdout.readline() == b"there\\n"
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_child_dies_with_its_parent_even_by_sigkill(tmp_path: Path, when: str) -> None:
    program = tmp_path / "parent.py"
    program.write_text(textwrap.dedent(PARENT))
    # The child inherits the test's pipe as its stderr: it reads as ended only when the child has ended as well.
    parent = subprocess.Popen([sys.executable, str(program), when], stderr=subprocess.PIPE)
    _, errors = parent.communicate(timeout=20)
    assert parent.returncode == -signal.SIGKILL
    assert errors == b""


def test_the_program_is_the_process_that_was_started() -> None:
    code = "import os, sys; print(os.getpid(), *sys.argv[1:]); sys.exit(7)"
    child = subprocess.Popen(tied((sys.executable, "-c", code, "-m", "a b")), stdout=subprocess.PIPE, text=True)
    output, _ = child.communicate(timeout=20)
    assert (output, child.returncode) == (f"{child.pid} -m a b\n", 7)
    assert child.pid != os.getpid()
