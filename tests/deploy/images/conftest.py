"""One engine, one build and one running stack for all tests of the images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.images.base_image import CERTIFICATES, prometheus_root, python_root
from tests.deploy.images.engine import Engine, Stack, free_ports

PORTS = ("JANUS_GATEWAY_HTTP_PORT", "JANUS_GATEWAY_GRPC_PORT", "PROMETHEUS_PORT")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def images(engine: Engine, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engine with both images, built by the Dockerfiles as they are."""
    folder = tmp_path_factory.mktemp("roots")
    engine.load(python_root(folder), "python:3.11-slim-bookworm", f"ENV SSL_CERT_FILE={CERTIFICATES}")
    Stack(engine, repository, {}).compose("build")
    return engine


@pytest.fixture(scope="session")
def stack(images: Engine, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Gateway, workers and Prometheus, healthy. The decoder's queue is short, so that it can be filled."""
    settings = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    settings |= {"JANUS_DECODER_MAX_RUNNING": "4", "JANUS_DECODER_MAX_QUEUE_REQUESTS": "4"}
    stack = Stack(images, repository, settings)
    image = yaml.safe_load((repository / "docker-compose.yml").read_text())["services"]["prometheus"]["image"]
    root = prometheus_root(tmp_path_factory.mktemp("prometheus"))
    images.load(root, image, 'ENTRYPOINT ["/usr/bin/prometheus"]', "USER 65534")
    stack.up("gateway", "prometheus")
    yield stack
    stack.compose("down", "--volumes", "--timeout", "5")
