"""The alerts: made of what the services export, and proven by promtool."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.errors import TABLE
from services.common.settings import DecoderSettings, EncoderSettings


@pytest.fixture
def alerts(repository: Path) -> dict[str, dict[str, Any]]:
    rules = yaml.safe_load((repository / "deploy/prometheus/rules.yml").read_text())
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def test_every_alert_selects_what_is_exported(
    alerts: dict[str, dict[str, Any]],
    declared_labels: dict[str, frozenset[str]],
    find_undeclared: Callable[[str, dict[str, frozenset[str]]], list[str]],
) -> None:
    wrong = {name: find_undeclared(alert["expr"], declared_labels) for name, alert in alerts.items()}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_every_alert_says_how_bad_it_is_and_what_to_look_at(alerts: dict[str, dict[str, Any]]) -> None:
    for alert in alerts.values():
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert set(alert["annotations"]) == {"summary", "description"}
        for words in re.findall(r'\b(?:code|reason)=~?"([^"]+)"', alert["expr"]):
            assert set(words.split("|")) <= set(TABLE)


def test_the_queue_alert_knows_the_queues_limits(alerts: dict[str, dict[str, Any]]) -> None:
    limits = [int(cls.model_fields["max_queue_requests"].default) for cls in (EncoderSettings, DecoderSettings)]
    thresholds = [int(each) for each in re.findall(r"> (\d+)", alerts["JanusQueueNearlyFull"]["expr"])]
    assert thresholds == [limit * 8 // 10 for limit in limits]


def test_every_alert_has_a_unit_test_in_which_it_fires(alerts: dict[str, dict[str, Any]], repository: Path) -> None:
    tests = yaml.safe_load((repository / "deploy/prometheus/rules.test.yml").read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert fired == set(alerts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]],
)
def test_promtool_agrees(command: list[str], repository: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: apt-get install --no-install-recommends prometheus"
    result = subprocess.run(
        [promtool, *command], cwd=repository / "deploy/prometheus", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
