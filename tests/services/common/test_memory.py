"""What a machine and a container say of their memory."""

from pathlib import Path

import pytest

from services.common.memory import available_bytes

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: {16 * 2**20} kB\nMemFree: 5 kB\nMemAvailable:    {8 * 2**20} kB\n")
    return path


def container(folder: Path, limit: str, used: int, forgettable: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {forgettable}\n")
    return folder


def test_a_machine_of_its_own(machine: Path, tmp_path: Path) -> None:
    assert available_bytes(machine, tmp_path / "none") == 8 * GIB
    assert available_bytes(machine, container(tmp_path, "max", GIB, 0)) == 8 * GIB


@pytest.mark.parametrize(("limit", "available"), [(4, 2.5), (2, 0.5), (1, 0), (100, 8)])
def test_a_container_has_what_its_limit_leaves(machine: Path, tmp_path: Path, limit: int, available: float) -> None:
    folder = container(tmp_path, str(limit * GIB), 2 * GIB, GIB // 2)
    assert available_bytes(machine, folder) == available * GIB


def test_this_machine() -> None:
    assert 2**20 < available_bytes() < 2**50
