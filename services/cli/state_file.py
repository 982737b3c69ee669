"""What the supervisor tells the gateway, for /readyz: one JSON object a service, replaced as a whole.

{"decoder": {"state": "waiting", "pid": null, "restarts": 4, "reason": "exited with code 3, 4 times in ..."}}
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ServiceState = Literal["running", "waiting", "stopped"]


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """How one service is; `waiting` is the time between an end and the next start."""

    state: ServiceState
    pid: int | None
    restarts: int
    reason: str


class StateFile:
    """The file; a reader sees the old text or the new one, never half of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reports: dict[str, ServiceReport] = {}

    def report(self, service: str, report: ServiceReport) -> None:
        """Say how a service is."""
        self._reports[service] = report
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text(json.dumps({name: asdict(each) for name, each in self._reports.items()}))
        unfinished.replace(self.path)
