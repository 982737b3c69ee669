"""How many cores there are, and what OpenMP is told."""

import os
from pathlib import Path

import pytest

from services.common import cores
from services.common.cores import physical_cores, share_cores, step_cores, usable_cores


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("100000 100000", 1), ("6400000 100000", None)])
def test_a_containers_quota_counts(quota: str, cores: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota + "\n")
    assert usable_cores(file) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["max 100000\n", "", None])
def test_without_a_quota_the_affinity_mask_counts(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    assert usable_cores(file) == len(os.sched_getaffinity(0))


@pytest.fixture
def four_cores_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, 0 and 4 of one core, 1 and 5 of the next, of which this process may not use 0."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1, 8)))
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    return tmp_path


def test_two_processors_of_a_core_are_one_core(four_cores_of_two: Path) -> None:
    assert physical_cores(Path("/nowhere"), four_cores_of_two) == (1, 2, 3, 4)


def test_a_quota_keeps_fewer_cores_busy(four_cores_of_two: Path) -> None:
    quota = four_cores_of_two / "cpu.max"
    quota.write_text("250000 100000\n")
    assert physical_cores(quota, four_cores_of_two) == (1, 2, 3)


def test_without_a_topology_every_processor_is_a_core(four_cores_of_two: Path) -> None:
    assert physical_cores(Path("/nowhere"), Path("/nowhere")) == tuple(range(1, 8))


@pytest.mark.parametrize(("num_cores", "wanted", "num_threads"), [(2, 0, 2), (64, 0, 16), (64, 32, 32), (2, 3, 3)])
def test_a_step_has_a_thread_a_core(
    num_cores: int, wanted: int, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "physical_cores", lambda: tuple(range(num_cores)))
    assert step_cores(wanted) == tuple(i % num_cores for i in range(num_threads))


def test_openmp_sleeps_while_it_waits_unless_told_otherwise() -> None:
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(usable_cores())}
    told = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
    share_cores(told)
    assert told == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
