"""Habits that keep the tree readable."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("model", "services") for path in (ROOT / folder).rglob("*.py") if path.stat().st_size
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert path.read_text("utf-8").startswith('"""'), "a module begins with its docstring"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_noun_a_file(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 350


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK|raise NotImplementedError)\b")
    assert [str(path.relative_to(ROOT)) for path in SOURCES if marks.search(path.read_text("utf-8"))] == []
