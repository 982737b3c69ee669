"""docker-compose.yml: valid for the real Compose, hardened, and in step with the settings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.settings import CommonSettings, DecoderSettings, EncoderSettings, GatewaySettings, all_settings

OURS = ("gateway", "encoder", "decoder")
# What an image or the file itself decides: addresses inside the network, and where the weights lie.
DECIDED = re.compile(
    r"JANUS_(\w+_)?(BIND_HOST|WEIGHTS_DIR)"
    r"|JANUS_\w+_(GRPC_PORT|HTTP_PORT|METRICS_PORT|SUPERVISOR_STATE|TARGETS)"
)
PORTS = {"JANUS_GATEWAY_HTTP_PORT": "18000", "JANUS_GATEWAY_GRPC_PORT": "15051"}


def configured(repository: Path, **environment: str) -> dict[str, Any]:
    """What Compose makes of the file, with nothing set but `environment`."""
    compose = Path(sys.executable).with_name("docker-compose")
    result = subprocess.run(
        [compose, "--env-file", "/dev/null", "config", "--format", "json"],
        cwd=repository,
        env={"HOME": os.environ["HOME"], "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


@pytest.fixture(scope="module")
def services(repository: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = configured(repository)["services"]
    return found


def test_the_stack_is_whole(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {*OURS, "prometheus", "grafana"}
    assert services["encoder"]["image"] == services["decoder"]["image"]
    waited_for = services["gateway"]["depends_on"]
    assert {name: each["condition"] for name, each in waited_for.items()} == {
        "encoder": "service_healthy",
        "decoder": "service_healthy",
    }


def test_every_container_is_hardened(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        assert service["deploy"]["resources"]["limits"]["pids"] > 0, name
        assert not service.get("privileged"), name


def test_ports_are_open_on_loopback_alone_and_workers_are_apart(repository: Path) -> None:
    whole = configured(repository)
    for name, service in whole["services"].items():
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
    for worker in ("encoder", "decoder"):
        assert "ports" not in whole["services"][worker]
        assert set(whole["services"][worker]["networks"]) == {"inside"}
    assert whole["networks"]["inside"]["internal"] is True


def test_ports_are_those_of_the_settings(services: dict[str, dict[str, Any]], repository: Path) -> None:
    gateway = GatewaySettings.model_fields
    workers = {"encoder": EncoderSettings.model_fields, "decoder": DecoderSettings.model_fields}
    published = {port["target"]: int(port["published"]) for port in services["gateway"]["ports"]}
    assert published == {gateway[name].default: gateway[name].default for name in ("http_port", "grpc_port")}
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in yaml.safe_load((repository / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    }
    assert targets["gateway"] == [f"gateway:{gateway['http_port'].default}"]
    for name, fields in workers.items():
        target = f"{name}:{fields['grpc_port'].default}"
        assert services["gateway"]["environment"][f"JANUS_GATEWAY_{name.upper()}_TARGETS"] == target
        assert targets[name] == [f"{name}:{fields['metrics_port'].default}"]


def test_what_it_sets_are_settings(repository: Path) -> None:
    known = {setting.environment for setting in all_settings()} | {"JANUS_TORCH"}
    assert "JANUS_TORCH" in (repository / "deploy/install.sh").read_text()
    for path in (repository / "docker-compose.yml", *(repository / "deploy/docker").glob("*.Dockerfile")):
        assert set(re.findall(r"JANUS_[A-Z_]+[A-Z]", path.read_text())) <= known, path.name


def test_every_setting_can_be_set_from_outside(repository: Path) -> None:
    values = {setting.environment: f"value of {setting.environment}" for setting in all_settings()}
    services = configured(repository, **{**values, **PORTS})["services"]
    for cls in (GatewaySettings, EncoderSettings, DecoderSettings):
        expected = {
            setting.environment
            for setting in all_settings()
            if setting.field in cls.model_fields
            # What all three share is named once, without a side.
            and (setting.side == cls.side or not setting.side)
            and not (setting.side and setting.field in CommonSettings.model_fields)
            and not DECIDED.fullmatch(setting.environment)
        }
        environment = services[cls.side]["environment"]
        missing = {name for name in expected if environment.get(name) != values[name]}
        assert missing == set(), f"not passed on to {cls.side} by docker-compose.yml"


def test_images_of_others_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"]), name


def test_grafana_has_an_administrator_only_with_a_password(repository: Path) -> None:
    switch = "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"
    assert "disable_initial_admin_creation = true" in (repository / "deploy/grafana/grafana.ini").read_text()
    assert not configured(repository)["services"]["grafana"]["environment"][switch]
    environment = configured(repository, GRAFANA_ADMIN_PASSWORD="secret")["services"]["grafana"]["environment"]
    assert environment[switch] == "false"
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == "secret"


def test_mounted_files_exist(services: dict[str, dict[str, Any]]) -> None:
    sources = [
        volume["source"]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume["type"] == "bind"
    ]
    assert sources
    assert all(Path(source).exists() for source in sources)
