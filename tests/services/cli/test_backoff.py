"""How long a service waits before its next life, and how its ends are told."""

import pytest

from services.cli.backoff import Backoff, Exits, describe_exit


def test_the_wait_doubles_from_one_second_to_thirty() -> None:
    backoff = Backoff()
    assert [backoff.wait_seconds(lives) for lives in (1, 2, 3, 4, 5, 6, 7, 10_000)] == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("code", "told"),
    [(0, "exited with code 0"), (3, "exited with code 3"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")],
)
def test_how_a_service_ended(code: int, told: str) -> None:
    assert describe_exit(code) == told


def test_repeated_ends_are_counted_for_a_minute() -> None:
    exits = Exits()
    assert exits.reason(0, "whatever") == ""
    exits.add(0, 1)
    assert exits.reason(1, "OSError: no such file") == "exited with code 1: OSError: no such file"
    assert exits.reason(1, "") == "exited with code 1"
    exits.add(10, 3)
    exits.add(20, 3)
    assert exits.reason(21, "last") == "exited with code 3, 3 times in the last minute: last"
    assert exits.reason(75, "last") == "exited with code 3: last"
    assert exits.reason(1000, "last") == ""


@pytest.mark.parametrize("code", [0, -9, -15])
def test_the_last_line_of_a_service_that_did_not_give_up_is_no_reason(code: int) -> None:
    exits = Exits()
    exits.add(0, code)
    assert exits.reason(1, "12:00:00 [info] rpc code=ok") == describe_exit(code)


def test_what_a_library_said_before_it_aborted_is_the_reason() -> None:
    exits = Exits()
    exits.add(0, -6)
    assert exits.reason(1, "terminate called") == "killed by SIGABRT: terminate called"
