"""How many cores there are, and what OpenMP is told."""

import os
from pathlib import Path

import pytest

from services.common.cores import share_cores, usable_cores


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


def test_openmp_sleeps_while_it_waits_unless_told_otherwise() -> None:
    environment: dict[str, str] = {}
    share_cores(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(usable_cores())}
    told = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
    share_cores(told)
    assert told == {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
