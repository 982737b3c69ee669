"""How busy others kept the machine while something was measured: cores used by none of our processes."""

import os
import time
from pathlib import Path

import psutil

_STAT = Path("/proc/stat")


def busy_seconds(stat: str, ticks_per_second: int) -> float:
    """What all cores have worked since boot: the first line of /proc/stat without its idle, waiting and stolen times.

    The time of guests is told twice there, under `user` too.
    """
    fields = stat.split("\n", 1)[0].split()
    assert fields[0] == "cpu"
    user, nice, system, _idle, _waiting, irq, soft_irq = (int(field) for field in fields[1:8])
    return (user + nice + system + irq + soft_irq) / ticks_per_second


def stolen_seconds(stat: str, ticks_per_second: int) -> float:
    """What the machine under a virtual one gave to others."""
    return int(stat.split("\n", 1)[0].split()[8]) / ticks_per_second


class ForeignLoad:
    """From its making on. Units: cores."""

    def __init__(self) -> None:
        self._started = self._read()

    def cores(self) -> float:
        """The mean of the cores that others kept busy."""
        (began, busy, own, _), (now, busy_now, own_now, _) = self._started, self._read()
        return max(0.0, (busy_now - busy - (own_now - own)) / (now - began))

    def stolen_cores(self) -> float:
        (began, *_, stolen), (now, *_, stolen_now) = self._started, self._read()
        return (stolen_now - stolen) / (now - began)

    def _read(self) -> tuple[float, float, float, float]:
        stat, ticks = _STAT.read_text("ascii"), os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy_seconds(stat, ticks), _own_seconds(), stolen_seconds(stat, ticks)


def _own_seconds() -> float:
    """What this process and all that it started have worked, those that have ended too."""
    me = psutil.Process()
    total = 0.0
    for one in (me, *me.children(recursive=True)):
        try:
            total += sum(one.cpu_times()[:4])  # user, system, and both of children that have ended
        except psutil.NoSuchProcess:  # it ended meanwhile: its parent has its time by now
            continue
    return total
