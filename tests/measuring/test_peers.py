"""What the peers print, and what is said where they are not installed."""

import sys

import pytest

from tests.performance.peers import installed
from tests.performance.peers.installed import BatchedSpeed, batched_speeds, run

PRINTED = """warming up
{"n_kv_max": 4096, "n_threads": 2, "pp": 128, "tg": 128, "pl": 8, "t_pp": 0.16, "speed_pp": 777.7, "speed_tg": 293.4}
{"n_kv_max": 4096, "n_threads": 2, "pp": 128, "tg": 128, "pl": 16, "t_pp": 0.15, "speed_pp": 825.9, "speed_tg": 384.9}

llama_print_timings: {}
"""


def test_the_figures_stand_among_other_lines() -> None:
    assert batched_speeds(PRINTED) == [BatchedSpeed(8, 777.7, 293.4), BatchedSpeed(16, 825.9, 384.9)]


def test_a_run_without_figures_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ValueError, match="out of memory"):
        batched_speeds("llama: out of memory\n")


def test_a_peer_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3: .*no such model"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('no such model'); sys.exit(3)"])


def test_a_peer_is_told_its_environment() -> None:
    assert run([sys.executable, "-c", "import os; print(os.environ['WAITS'])"], WAITS="ACTIVE") == "ACTIVE\n"


def test_what_is_not_installed_names_the_target_that_installs_it(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "PEERS", tmp_path)
    with pytest.raises(FileNotFoundError, match="make bench-peers"):
        installed.weights("Q8_0")
    with pytest.raises(FileNotFoundError, match="make bench-peers"):
        run([f"{tmp_path}/llama-batched-bench"])
