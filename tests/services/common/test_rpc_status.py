"""The error table on gRPC and back; real statuses over a real channel are in test_grpc_server."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from services.common.errors import TABLE, JanusError, QueueFull, from_code
from services.common.rpc_status import DOMAIN, MAX_MESSAGE_CHARACTERS, from_rpc_error, to_rpc_status


def received(error: JanusError) -> JanusError:
    """The error as the other side reads it."""
    status = to_rpc_status(error)
    code = next(each for each in grpc.StatusCode if each.value[0] == status.code)
    trailing = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return from_rpc_error(AioRpcError(code, Metadata(), trailing, status.message))


@pytest.mark.parametrize("code", TABLE)
@pytest.mark.parametrize("param", [None, "messages[0].content"])
def test_every_row_survives_the_way(code: str, param: str | None) -> None:
    error = from_code(code, "why it failed: é 你", param=param, retry_after_ms=1500)
    back = received(error)
    assert type(back) is type(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("code", TABLE)
def test_every_code_of_the_table_has_a_class_of_its_own(code: str) -> None:
    assert from_code(code, "").code == code


def test_an_unknown_word_is_internal() -> None:
    assert from_code("nobody_knows", "").code == "internal"


def test_a_refusal_that_is_worth_a_retry_says_when() -> None:
    assert received(QueueFull("full")).retry_after_ms == 1000
    assert received(from_code("invalid_request", "no")).retry_after_ms is None


def test_a_long_message_is_cut_so_that_headers_stay_small() -> None:
    status = to_rpc_status(from_code("invalid_request", "你" * 10_000, param="inputs"))
    assert len(status.message) == MAX_MESSAGE_CHARACTERS
    assert status.ByteSize() < 4096


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, "worker_lost"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded"),
        (grpc.StatusCode.CANCELLED, "cancelled"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "payload_too_large"),
        (grpc.StatusCode.UNIMPLEMENTED, "route_not_found"),
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request"),
        (grpc.StatusCode.UNKNOWN, "internal"),
    ],
)
def test_a_status_of_grpcs_own_gets_a_word_and_loses_its_text(status: grpc.StatusCode, code: str) -> None:
    error = from_rpc_error(AioRpcError(status, Metadata(), Metadata(), "ipv4:10.0.0.7:50061 secret"))
    assert error.code == code
    assert "10.0.0.7" not in error.message


def test_another_domains_error_is_not_taken_for_ours() -> None:
    status = to_rpc_status(QueueFull("full"))
    text = status.SerializeToString().replace(DOMAIN.encode(), b"other.v1")
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = AioRpcError(code, Metadata(), Metadata(("grpc-status-details-bin", text)), "full")
    assert from_rpc_error(error).code == "payload_too_large"
