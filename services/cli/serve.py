"""`janus serve`: encoder, decoder and gateway on this machine, under a supervisor.

Its flags are the settings of all three, made from their declarations; a flag becomes the environment variable of the
same name, which the services inherit.
"""

import asyncio
import contextlib
import inspect
import os
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.backoff import Backoff
from services.cli.child import Service
from services.cli.service_log import ServiceLog
from services.cli.state_file import StateFile
from services.cli.supervisor import Supervisor
from services.common.cores import share_cores
from services.common.lifecycle import ExitCode
from services.common.ports import open_socket
from services.common.settings import (
    CommonSettings,
    ConfigurationError,
    DecoderSettings,
    EncoderSettings,
    GatewaySettings,
    Setting,
    all_settings,
    load_settings,
    setting_of,
)

SERVICES = (
    Service("encoder", (sys.executable, "-m", "services.encoder")),
    Service("decoder", (sys.executable, "-m", "services.decoder")),
    Service("gateway", (sys.executable, "-m", "services.gateway"), is_door=True),
)
POLL_SECONDS = 0.25
INSTALLATION = {"JANUS_TORCH"}
"""Variables of deploy/install.sh."""


def serve(**flags: str | None) -> None:
    """Start encoder, decoder and gateway, and keep them running.

    Every flag is also an environment variable: --decoder-model is JANUS_DECODER_MODEL.
    """
    os.environ.update({f"JANUS_{name.upper()}": value for name, value in flags.items() if value is not None})
    raise typer.Exit(serve_here(os.environ, SERVICES))


def _parameters(settings: Iterable[Setting]) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            setting.environment.removeprefix("JANUS_").lower(),
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(
                    setting.flag,
                    help=f"{setting.help}" + (f" (default: {setting.default})" if setting.default else ""),
                    show_envvar=False,
                    metavar="",
                    rich_help_panel=setting.side or "all services",
                ),
            ],
        )
        for setting in settings
    ]


def with_setting_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command of keyword arguments a flag for every setting there is."""
    parameters = _parameters(all_settings())
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def serve_here(environment: MutableMapping[str, str], services: Sequence[Service]) -> ExitCode:
    """Check the settings, tell where the doors are, and supervise until the end."""
    gateway, encoder, decoder = settings = (
        load_settings(GatewaySettings, []),
        load_settings(EncoderSettings, []),
        load_settings(DecoderSettings, []),
    )
    log = ServiceLog([service.name for service in services], log_format=gateway.log_format)
    for name in _unknown_settings(environment):
        log.say(f"{name} is no setting and changes nothing; see `janus serve --help`", is_bad=True)
    try:
        ports = {each.side: _open_ports(each) for each in settings}
    except ConfigurationError as error:
        log.say(str(error), is_bad=True)
        return ExitCode.FAILED
    for side, fields in ports.items():
        environment.update({f"JANUS_{side}_{field}".upper(): str(port) for field, port in fields.items()})
    for worker in (encoder, decoder):
        if f"{worker.side}_targets" not in gateway.model_fields_set:
            target = f"{_reachable(worker.bind_host)}:{ports[worker.side]['grpc_port']}"
            environment[f"JANUS_GATEWAY_{worker.side.upper()}_TARGETS"] = target
    share_cores(environment)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    host, http_port, grpc_port = gateway.bind_host, ports["gateway"]["http_port"], ports["gateway"]["grpc_port"]
    _say_where(log, host, http_port, grpc_port)
    with tempfile.TemporaryDirectory(prefix="janus-") as folder:
        state_file = StateFile(gateway.supervisor_state or Path(folder) / "supervisor.json")
        environment[setting_of(gateway, "supervisor_state")] = str(state_file.path)
        supervisor = Supervisor(
            services,
            environment=environment,
            log=log,
            state_file=state_file,
            backoff=Backoff(),
            drain_timeout_seconds=gateway.drain_timeout_seconds,
        )
        url = f"http://{_reachable(host)}:{http_port}/readyz"
        return asyncio.run(supervisor.run(lambda: _until_ready(url)))


def _unknown_settings(environment: Iterable[str]) -> list[str]:
    """Variables that look like ours: most often one that is mistyped."""
    known = {setting.environment for setting in all_settings()} | INSTALLATION
    return sorted(name for name in environment if name.startswith("JANUS_") and name not in known)


def _open_ports(settings: CommonSettings) -> dict[str, int]:
    """The service's ports, found free; 0 becomes a number here, because the gateway has to know it."""
    names = [name for name in type(settings).model_fields if name.endswith("_port")]
    with contextlib.ExitStack() as opened:
        sockets: dict[str, socket.socket] = {
            name: opened.enter_context(
                open_socket(settings.bind_host, getattr(settings, name), setting_of(settings, name))
            )
            for name in names
        }
        return {name: each.getsockname()[1] for name, each in sockets.items()}


def _reachable(host: str) -> str:
    """Where a server on this machine answers that was bound to an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _say_where(log: ServiceLog, host: str, http_port: int, grpc_port: int) -> None:
    shown = _reachable(host)
    log.say(f"REST    http://{shown}:{http_port}/v1   (documentation: http://{shown}:{http_port}/docs)")
    log.say(f"gRPC    {shown}:{grpc_port}")
    log.say(f"metrics http://{shown}:{http_port}/metrics")
    if host in ("127.0.0.1", "::1", "localhost"):
        log.say(f"no API key is asked for; the doors are open to this machine only ({host})")
    else:
        log.say(f"no API key is asked for, and {host} is open to whoever reaches this machine", is_bad=True)


async def _until_ready(url: str) -> None:
    while True:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_ask, url)
            return
        await asyncio.sleep(POLL_SECONDS)


def _ask(url: str) -> None:
    with urllib.request.urlopen(url, timeout=1.0):
        pass
