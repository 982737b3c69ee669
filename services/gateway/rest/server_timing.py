"""Where the time of a request went, as the `Server-Timing` header. Source: W3C Server Timing."""

from janus.v1 import common_pb2


def server_timing(**stages_ms: float) -> dict[str, str]:
    """A header such as `queue;dur=0.4, tokenize;dur=0.1`; stages that took no time are left out."""
    shown = ", ".join(f"{name};dur={duration:.2f}" for name, duration in stages_ms.items() if duration)
    return {"Server-Timing": shown} if shown else {}


def encoder_timing(timings: common_pb2.Timings) -> dict[str, str]:
    return server_timing(queue=timings.queue_ms, tokenize=timings.tokenize_ms, inference=timings.inference_ms)


def decoder_timing(timings: common_pb2.Timings) -> dict[str, str]:
    return server_timing(
        queue=timings.queue_ms, tokenize=timings.tokenize_ms, prefill=timings.prefill_ms, decode=timings.decode_ms
    )
