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
        self._width = max(map(len, [*services, "janus"]))
        # Rendered once: a busy service writes a line for each request.
        colours = dict(zip(services, COLOURS, strict=False))
        self._prefixes = {name: self._prefix(name, colours.get(name, "white")) for name in services}
        self._own_prefixes = {
            is_bad: self._prefix("janus", "bold red" if is_bad else "bold") for is_bad in (False, True)
        }

    def line(self, service: str, line: str) -> None:
        """A line that a service wrote."""
        if not self._is_json:
            self._write(self._prefixes[service], line)
        elif line.startswith("{"):
            print(line, flush=True)
        else:
            print(json.dumps({"service": service, "event": line}), flush=True)

    def say(self, line: str, *, is_bad: bool = False) -> None:
        """A line of the supervisor's own."""
        if self._is_json:
            print(json.dumps({"service": "janus", "event": line, "level": "error" if is_bad else "info"}), flush=True)
        else:
            self._write(self._own_prefixes[is_bad], line)

    def _prefix(self, name: str, style: str) -> str:
        with self._console.capture() as rendered:
            self._console.print(Text(f"{name:<{self._width}} │ ", style=style), end="")
        return rendered.get()

    def _write(self, prefix: str, line: str) -> None:
        self._console.file.write(f"{prefix}{line}\n")
        self._console.file.flush()
