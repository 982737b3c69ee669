"""One readable log of several processes: each line with the coloured name of its service, or JSON passed through."""

import json
from typing import Literal

from rich.console import Console
from rich.text import Text

COLOURS = ("cyan", "magenta", "green", "yellow")


class ServiceLog:
    """Writes lines of services and of the supervisor itself."""

    def __init__(self, services: list[str], *, log_format: Literal["console", "json"], console: Console | None = None):
        self._console = console or Console()
        self._is_json = log_format == "json"
        self._colours = dict(zip(services, COLOURS, strict=False))
        self._width = max(map(len, [*services, "janus"]))

    def line(self, service: str, line: str) -> None:
        """A line that a service wrote."""
        if not self._is_json:
            self._write(service, self._colours.get(service, "white"), line)
        elif line.startswith("{"):
            print(line, flush=True)
        else:
            print(json.dumps({"service": service, "event": line}), flush=True)

    def say(self, line: str, *, is_bad: bool = False) -> None:
        """A line of the supervisor's own."""
        if self._is_json:
            print(json.dumps({"service": "janus", "event": line, "level": "error" if is_bad else "info"}), flush=True)
        else:
            self._write("janus", "bold red" if is_bad else "bold", line)

    def _write(self, name: str, style: str, line: str) -> None:
        prefix = Text(f"{name:<{self._width}} │ ", style=style)
        self._console.print(prefix + Text(line), soft_wrap=True, highlight=False)
