"""How long a service that ended waits before it is started again, and how its ends are told."""

import signal
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """1 s, doubling to 30 s; a life that was long enough starts over at the first wait."""

    first_seconds: float = 1.0
    longest_seconds: float = 30.0
    reset_after_seconds: float = 60.0

    def wait_seconds(self, num_short_lives: int) -> float:
        """The wait after so many short lives in a row, at least one."""
        return min(self.first_seconds * 2.0 ** min(num_short_lives - 1, 30), self.longest_seconds)


@dataclass(slots=True)
class Exits:
    """When and how one service ended, for as long as that is news."""

    window_seconds: float = 60.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, code: int) -> None:
        self._recent.append((now, code))

    def reason(self, now: float, last_line: str) -> str:
        """For example: exited with code 3, 4 times in the last minute: OSError: no such file.

        The last line is the cause only where a service gave up by itself; one that was killed said nothing of it.
        """
        while self._recent and self._recent[0][0] < now - self.window_seconds:
            self._recent.popleft()
        if not self._recent:
            return ""
        times, code = len(self._recent), self._recent[-1][1]
        how = describe_exit(code) + (f", {times} times in the last minute" if times > 1 else "")
        has_cause = code > 0 or code == -signal.SIGABRT
        return f"{how}: {last_line}" if last_line and has_cause else how


def describe_exit(code: int) -> str:
    """A return code as subprocess gives it; negative is the signal that ended the process."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
