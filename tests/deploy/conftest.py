"""What the tests of the deployment share: the files, and what the code behind them declares."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from services.common.metrics import DecoderMetrics, EncoderMetrics, GatewayMetrics

REPOSITORY = Path(__file__).resolve().parents[2]
# Labels that a scrape adds: Prometheus' own, and the one of prometheus.yml.
OF_THE_SCRAPE = frozenset({"job", "instance", "worker"})
OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((REPOSITORY / "deploy/grafana/dashboards/janus.json").read_text())
    return loaded


@pytest.fixture(scope="session")
def board_expressions(board: dict[str, Any]) -> dict[str, str]:
    """Every expression of the board by `panel / legend`, its variables put in."""
    found = {}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "30s")
            for variable in board["templating"]["list"]:
                expression = expression.replace(f"${variable['name']}", variable["allValue"])
            found[f"{panel['title']} / {target['refId']}"] = expression
    return found


@pytest.fixture(scope="session")
def declared_labels() -> dict[str, frozenset[str]]:
    """Every series that can be scraped, with its labels."""
    declared: dict[str, frozenset[str]] = {"up": OF_THE_SCRAPE}
    for metrics in (GatewayMetrics(), EncoderMetrics(), DecoderMetrics()):
        for metric in vars(metrics).values():
            if not hasattr(metric, "_labelnames"):
                continue
            family = next(iter(metric.describe()))
            labels = frozenset(metric._labelnames) | OF_THE_SCRAPE
            if family.type == "histogram":
                declared.update({family.name + suffix: labels for suffix in OF_A_HISTOGRAM})
                declared[family.name + "_bucket"] = labels | {"le"}
            else:
                declared[family.name + ("_total" if family.type == "counter" else "")] = labels
    return declared


def parts(node: Any) -> Iterator[Any]:
    """A node of a parsed expression and all below it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        if child is not None:
            yield from parts(child)
    for argument in getattr(node, "args", ()):
        yield from parts(argument)


def undeclared(expression: str, declared: dict[str, frozenset[str]]) -> list[str]:
    """What an expression selects or groups by and nothing exports.

    Raises: ValueError for an expression that does not parse.
    """
    nodes = list(parts(promql_parser.parse(expression)))
    selected: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, promql_parser.VectorSelector):
            selected.setdefault(node.name or "", set()).update(matcher.name for matcher in node.matchers.matchers)
    assert selected, expression
    wrong = [name for name in selected if name not in declared]
    known = frozenset[str]().union(*(declared.get(name, frozenset()) for name in selected))
    for name, labels in selected.items():
        wrong += [f"{name}{{{label}}}" for label in labels - declared.get(name, known)]
    for node in nodes:
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            wrong += [f"by ({label})" for label in modifier.labels if label not in known]
        if isinstance(node, promql_parser.BinaryExpr) and modifier is not None and modifier.matching is not None:
            wrong += [f"on ({label})" for label in modifier.matching.labels if label not in known]
    return wrong


@pytest.fixture(scope="session")
def find_undeclared() -> Any:
    return undeclared
