"""GenerationOptions as asked, checked and completed: every default filled in, every limit known."""

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from janus.v1 import decoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 1000
COMPLETION_MAX_TOKENS = 16
SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the model and the cache can hold, in tokens, and what the vocabulary has."""

    max_context_tokens: int
    max_cache_tokens: int
    vocabulary_size: int

    @property
    def max_total_tokens(self) -> int:
        return min(self.max_context_tokens, self.max_cache_tokens)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What stands where a request names nothing."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is generated. Units: output tokens."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]
    output_token_ids: tuple[int, ...]


def plan(
    options: decoder_pb2.GenerationOptions,
    *,
    num_prompt_tokens: int,
    prompt_param: str,
    capacity: Capacity,
    defaults: Defaults,
    end_ids: frozenset[int],
) -> Plan:
    """Raises: InvalidRequest with the field at fault, ContextLengthExceeded with both counts."""
    left = capacity.max_total_tokens - num_prompt_tokens
    if left < 1:
        raise ContextLengthExceeded(
            f"The prompt has {num_prompt_tokens} tokens; with room for an answer it may have at most "
            f"{capacity.max_total_tokens - 1}.",
            param=prompt_param,
        )
    max_tokens = options.max_tokens if options.HasField("max_tokens") else min(left, defaults.max_tokens)
    _check(max_tokens >= 1, "max_tokens", "must be at least 1")
    if max_tokens > left:
        raise ContextLengthExceeded(
            f"The prompt has {num_prompt_tokens} tokens and the request asks for {max_tokens} more; together they "
            f"may be at most {capacity.max_total_tokens}.",
            param="max_tokens",
        )
    min_tokens = options.min_tokens
    _check(
        0 <= min_tokens <= max_tokens,
        "min_tokens",
        f"must be at least 0 and at most {max_tokens}, the most tokens of this answer",
    )
    temperature = options.temperature if options.HasField("temperature") else defaults.temperature
    _check(math.isfinite(temperature) and 0 <= temperature <= 2, "temperature", "must be at least 0 and at most 2")
    top_p = options.top_p if options.HasField("top_p") else defaults.top_p
    _check(math.isfinite(top_p) and 0 < top_p <= 1, "top_p", "must be above 0 and at most 1")
    top_k = options.top_k if options.HasField("top_k") else defaults.top_k
    _check(top_k >= 0, "top_k", "must be at least 0")
    _check(math.isfinite(options.min_p) and 0 <= options.min_p <= 1, "min_p", "must be at least 0 and at most 1")
    _check(len(options.stop) <= MAX_STOP_STRINGS, "stop", f"takes at most {MAX_STOP_STRINGS} strings")
    _check(
        all(0 < len(s) <= MAX_STOP_CHARACTERS for s in options.stop),
        "stop",
        f"takes strings of 1 to {MAX_STOP_CHARACTERS} characters",
    )
    check_vocabulary(options.stop_token_ids, "stop_token_ids", capacity)
    stop_ids = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else end_ids)
    return Plan(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=options.min_p,
        seed=options.seed if options.HasField("seed") else secrets.randbits(SEED_BITS),
        stop_strings=tuple(options.stop),
        stop_ids=stop_ids,
        output_token_ids=_output_token_ids(options, max_tokens, capacity),
    )


def check_vocabulary(token_ids: Iterable[int], param: str, capacity: Capacity) -> None:
    """Raises: InvalidRequest for an id that the vocabulary has not."""
    for token_id in token_ids:
        _check(
            0 <= token_id < capacity.vocabulary_size,
            param,
            f"holds what is no token: ids go from 0 to {capacity.vocabulary_size - 1}",
        )


def _output_token_ids(options: decoder_pb2.GenerationOptions, max_tokens: int, capacity: Capacity) -> tuple[int, ...]:
    _check(
        len(options.output_token_ids) <= 1,
        "output_token_ids",
        "takes an entry for each choice, and there is one choice",
    )
    given = tuple(options.output_token_ids[0].ids) if options.output_token_ids else ()
    check_vocabulary(given, "output_token_ids", capacity)
    _check(
        len(given) <= max_tokens,
        "output_token_ids",
        f"has {len(given)} tokens, more than the {max_tokens} of 'max_tokens'",
    )
    return given


def _check(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidRequest(f"'{param}' {rule}.", param=param)
