"""The Dockerfiles: fit for the classic builder, without hosts, and in step with the tree and the settings."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from services.common.settings import CommonSettings, DecoderSettings, EncoderSettings, GatewaySettings

NAMES = ("gateway", "worker")
PORTS: dict[str, tuple[type[CommonSettings], str]] = {
    "gateway": (GatewaySettings, "http_port"),
    "encoder": (EncoderSettings, "metrics_port"),
    "decoder": (DecoderSettings, "metrics_port"),
}


@pytest.fixture(params=NAMES)
def dockerfile(request: pytest.FixtureRequest, repository: Path) -> str:
    text = (repository / f"deploy/docker/{request.param}.Dockerfile").read_text()
    return re.sub(r"\\\n\s*", "", text)


@pytest.fixture
def healthcheck(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("janus_healthcheck", repository / "deploy/docker/healthcheck.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_any_builder_can_build_it(dockerfile: str) -> None:
    assert not re.search(r"^#\s*syntax=|--mount|<<", dockerfile, re.MULTILINE)
    assert "://" not in dockerfile


def test_it_runs_as_nobody_in_particular_and_ends_on_sigterm(dockerfile: str) -> None:
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in last_stage
    assert "\nSTOPSIGNAL SIGTERM\n" in last_stage
    command = re.search(r"^CMD (.+)$", last_stage, re.MULTILINE)
    check = re.search(r"^HEALTHCHECK .*CMD (.+)$", last_stage, re.MULTILINE)
    assert command is not None
    assert check is not None
    assert json.loads(command[1])[:2] == ["python", "-m"]
    assert json.loads(check[1]) == ["python", "healthcheck.py"]


def test_what_it_copies_exists_and_is_sent_to_the_builder(dockerfile: str, repository: Path) -> None:
    sent = [line[1:] for line in (repository / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (repository / source).exists(), source
            assert any(
                source == each or each.startswith(f"{source}/") or source.startswith(f"{each}/") for each in sent
            )


def test_packages_are_installed_before_code_is_copied(dockerfile: str) -> None:
    installation = re.search(r"^RUN .*deploy/install\.sh", dockerfile, re.MULTILINE)
    assert installation is not None
    assert not re.search(
        r"^COPY .*(services|model|README)", dockerfile[: installation.start()].replace("-models", ""), re.MULTILINE
    )


def test_the_health_check_knows_every_service_and_its_port(healthcheck: ModuleType) -> None:
    expected = {
        side: (f"JANUS_{side.upper()}_{field.upper()}", cls.model_fields[field].default)
        for side, (cls, field) in PORTS.items()
    }
    assert expected == healthcheck.PORTS
    for side in expected:
        assert healthcheck.service_of(f"python -m services.{side} --log-level debug ") == side


def test_the_health_check_refuses_a_strange_process(healthcheck: ModuleType) -> None:
    with pytest.raises(SystemExit, match="none of gateway, encoder, decoder: sleep"):
        healthcheck.service_of("sleep 1")
