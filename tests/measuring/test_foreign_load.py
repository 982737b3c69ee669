"""How busy others are: all work of the machine but that of this process and its children."""

import subprocess
import sys

import pytest

from tests.performance import foreign_load
from tests.performance.foreign_load import ForeignLoad, busy_seconds, stolen_seconds

STAT = """cpu  1000 200 300 99999 50 7 3 40 600 0
cpu0 500 100 150 49999 25 3 1 20 300 0
intr 1
"""


def test_idle_cores_and_waits_for_disks_are_no_work_and_guests_count_once() -> None:
    assert busy_seconds(STAT, 100) == pytest.approx(15.10)
    assert stolen_seconds(STAT, 100) == pytest.approx(0.40)


@pytest.mark.parametrize("is_running", [False, True])
def test_what_children_work_is_our_own(is_running: bool) -> None:
    before = foreign_load._own_seconds()
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        if not is_running:
            child.communicate("\n")
        assert foreign_load._own_seconds() - before >= 0.25  # times come in hundredths
        if is_running:
            child.communicate("\n")


def test_own_work_is_taken_from_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds, all work, own work, stolen.
    readings = iter([(10.0, 100.0, 5.0, 1.0), (20.0, 118.0, 17.0, 1.5), (20.0, 118.0, 17.0, 1.5)])
    monkeypatch.setattr(ForeignLoad, "_read", lambda self: next(readings))
    load = ForeignLoad()
    assert load.cores() == pytest.approx(0.6)
    assert load.stolen_cores() == pytest.approx(0.05)
