"""How much memory this process may still take, so that what is reserved at the start is really there later."""

from pathlib import Path

MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(memory: Path = MEMORY, cgroup: Path = CGROUP) -> int:
    """What the machine has left without swapping, less where a container's limit (cgroup v2) allows less.

    Files that the container read lately and can forget count as available.
    """
    kibibytes = next(line.split()[1] for line in memory.read_text().splitlines() if line.startswith("MemAvailable:"))
    machine = int(kibibytes) * 1024
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        counted = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return machine
    if limit == "max":
        return machine
    return max(0, min(machine, int(limit) - int(used) + int(counted.get("inactive_file", 0))))
