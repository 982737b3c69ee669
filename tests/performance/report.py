"""Figures as a table of RESULTS.md, under the machine and the commit that gave them."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TypeAlias

import torch

Row: TypeAlias = tuple[str, str, str, str]
"""What was measured, our figure, the peer's, and the ratio with its range."""

RESULTS = Path(__file__).with_name("RESULTS.md")

_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def table(heads: Row, rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def append(lines: Sequence[str]) -> None:
    """Prints a section and adds it to RESULTS.md."""
    machine = f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    report = ["", f"## {date.today()} · {_commit()} · {machine}", "", *lines]
    print("\n".join(report))
    with RESULTS.open("a", encoding="utf-8") as results:
        results.write("\n".join(report) + "\n")


def _processor() -> str:
    """The model and the instruction sets that speed depends on, where the system tells them."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    fields = dict(line.split(":", 1) for line in told.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    known = set(fields.get("flags", "").split())
    sets = " ".join(name for name in _INSTRUCTION_SETS if name in known)
    return f"{fields.get('model name', platform.machine())} ({sets})"


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
