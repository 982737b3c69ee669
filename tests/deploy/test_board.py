"""The board: fresh, readable, and made of nothing but what the services export."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from services.common.errors import TABLE
from services.common.metrics import WORKER_STATES

Undeclared = Callable[[str, dict[str, frozenset[str]]], list[str]]


@pytest.fixture
def source(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = repository / "deploy/grafana/board.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("janus_board", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("panels")
    return module


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_file_is_what_its_source_writes(source: ModuleType) -> None:
    assert source.TARGET.read_text() == source.rendered(), "run: python deploy/grafana/board.py"


def test_every_expression_selects_what_is_exported(
    board_expressions: dict[str, str], declared_labels: dict[str, frozenset[str]], find_undeclared: Undeclared
) -> None:
    wrong = {panel: find_undeclared(text, declared_labels) for panel, text in board_expressions.items()}
    assert {panel: names for panel, names in wrong.items() if names} == {}


def test_an_unknown_metric_label_or_grouping_is_found(
    declared_labels: dict[str, frozenset[str]], find_undeclared: Undeclared
) -> None:
    expression = 'sum by (nobody) (rate(janus_requests_total{color="red"}[1m])) / janus_requests'
    assert find_undeclared(expression, declared_labels) == [
        "janus_requests",
        "janus_requests_total{color}",
        "by (nobody)",
    ]


def test_variables_and_legends_use_exported_labels(
    board: dict[str, Any], declared_labels: dict[str, frozenset[str]]
) -> None:
    for variable in board["templating"]["list"]:
        found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
        assert found is not None, variable["query"]
        assert found[2] in declared_labels[found[1]]
    every_label = frozenset[str]().union(*declared_labels.values())
    for panel in panels(board):
        for target in panel["targets"]:
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= every_label


def test_words_of_the_error_table_and_of_the_states_exist(board_expressions: dict[str, str]) -> None:
    for panel, expression in board_expressions.items():
        for words in re.findall(r'\bcode=~?"([^"]+)"', expression):
            assert set(words.split("|")) <= set(TABLE), panel
        for word in re.findall(r'\bstate="([^"]+)"', expression):
            assert word in WORKER_STATES, panel


def test_every_panel_says_what_it_shows_and_in_which_unit(board: dict[str, Any]) -> None:
    titles = [panel["title"] for panel in panels(board)]
    assert len(titles) == len(set(titles))
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        if panel["type"] in {"timeseries", "stat"}:
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_panels_fill_their_rows_and_do_not_overlap(board: dict[str, Any]) -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    bottom = max(y for _, y in cells) + 1
    assert len(cells) == 24 * bottom


def test_the_board_asks_the_provisioned_datasource(board: dict[str, Any], repository: Path) -> None:
    provisioned = yaml.safe_load((repository / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    scraped = yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())
    (datasource,) = provisioned["datasources"]
    asked = {panel["datasource"]["uid"] for panel in panels(board)}
    asked |= {target["datasource"]["uid"] for panel in panels(board) for target in panel["targets"]}
    asked |= {variable["datasource"]["uid"] for variable in board["templating"]["list"]}
    assert asked == {datasource["uid"]}
    assert datasource["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
