"""A container engine of the tests' own, and the stack that Compose runs in it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INSTALL = "apt-get update && apt-get install --no-install-recommends docker.io iptables mmdebstrap prometheus"
START_SECONDS = 60
# A docker of another origin may stand earlier on PATH than the one that came with the daemon.
DEBIAN_PATH = "/usr/bin:/usr/sbin:/bin:/sbin"


def program(name: str) -> str:
    """Where a program of Debian's lies.

    Raises: AssertionError that says how to install it.
    """
    found = shutil.which(name, path=DEBIAN_PATH)
    assert found, f"{name} is missing. The image tests need root and: {INSTALL}"
    return found


class Engine:
    """A dockerd with its files in `folder`; `close` ends it and removes what it stored."""

    def __init__(self, folder: Path) -> None:
        assert os.geteuid() == 0, f"the image tests need root and: {INSTALL}"
        for name in ("iptables", "mmdebstrap"):
            program(name)
        self._docker = program("docker")
        self._folder = folder
        self._log = folder / "dockerd.log"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("DOCKER_", "COMPOSE_", "JANUS_"))
            },
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": str(folder),
            "DOCKER_BUILDKIT": "0",
        }
        places = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/docker.pid"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [program("dockerd"), *places, "--host", self.environment["DOCKER_HOST"]], stdout=log, stderr=log
            )
        self._wait()

    def run(self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> str:
        """The output of a command that talks to this engine.

        Raises: AssertionError with its output.
        """
        result = subprocess.run(
            command, env={**self.environment, **(environment or {})}, capture_output=True, text=True, check=False
        )
        said = result.stdout + result.stderr
        assert result.returncode == 0, f"{' '.join(map(str, command))} ended with {result.returncode}:\n{said[-8000:]}"
        return result.stdout

    def docker(self, *arguments: str | Path) -> str:
        return self.run([self._docker, *arguments])

    def load(self, root: Path, tag: str, *changes: str) -> None:
        """Make an image of a root file system."""
        self.docker("import", *(part for change in changes for part in ("--change", change)), root, tag)
        root.unlink()

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if (
                subprocess.run(
                    [self._docker, "version"], env=self.environment, capture_output=True, check=False
                ).returncode
                == 0
            ):
                return
            time.sleep(0.2)
        self.close()
        raise AssertionError(f"dockerd did not start:\n{self._log.read_text()[-4000:]}")


class Stack:
    """docker-compose.yml, running in an engine; `settings` are what a .env file would set."""

    def __init__(self, engine: Engine, repository: Path, settings: Mapping[str, str]) -> None:
        self._engine = engine
        self._settings = settings
        compose = Path(sys.executable).with_name("docker-compose")
        self._compose = [str(compose), "--project-directory", str(repository), "--env-file", "/dev/null"]

    def compose(self, *arguments: str) -> str:
        return self._engine.run([*self._compose, *arguments], environment=self._settings)

    def up(self, *services: str) -> None:
        """Start services and what they depend on, and wait until they are healthy."""
        try:
            self.compose("up", "--detach", "--no-build", "--wait", *services)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--no-color', '--tail', '40')}") from None

    def execute(self, service: str, *command: str) -> str:
        """What a command prints inside the running container of a service."""
        return self.compose("exec", "-T", service, *command)

    def containers(self) -> dict[str, dict[str, Any]]:
        """Every container by its service: `State`, `Health`, `ExitCode`."""
        lines = self.compose("ps", "--all", "--format", "json").splitlines()
        return {each["Service"]: each for each in map(json.loads, lines)}

    def url(self, variable: str) -> str:
        """The address of a published port, by the variable that sets it."""
        return f"http://127.0.0.1:{self._settings[variable]}"


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
