"""GenerationOptions as asked, checked and completed: every default filled in, every limit known."""

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from janus.v1 import decoder_pb2
from services.common.errors import ContextLengthExceeded, InvalidRequest

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100
# It and its inverse lie beyond any use, and keep scores finite: a row that nothing can be drawn from fails its step.
MAX_REPETITION_PENALTY = 100
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
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...] | None
    # None: no log probabilities at all.
    top_logprobs: int | None
    seed: int
    stop_strings: tuple[str, ...]
    stop_ids: frozenset[int]
    # Of each choice, what it has already.
    output_token_ids: tuple[tuple[int, ...], ...]


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
    is_echo_alone = options.echo and options.HasField("max_tokens") and options.max_tokens == 0
    if left < (0 if is_echo_alone else 1):
        raise ContextLengthExceeded(
            f"The prompt has {num_prompt_tokens} tokens; with room for an answer it may have at most "
            f"{capacity.max_total_tokens - 1}.",
            param=prompt_param,
        )
    max_tokens = options.max_tokens if options.HasField("max_tokens") else min(left, defaults.max_tokens)
    _check(max_tokens >= 1 or is_echo_alone, "max_tokens", "must be at least 1, or 0 with 'echo'")
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
    repetition_penalty = options.repetition_penalty if options.HasField("repetition_penalty") else 1.0
    _check(
        1 / MAX_REPETITION_PENALTY <= repetition_penalty <= MAX_REPETITION_PENALTY,
        "repetition_penalty",
        f"must be at least {1 / MAX_REPETITION_PENALTY} and at most {MAX_REPETITION_PENALTY}",
    )
    for name in ("presence_penalty", "frequency_penalty"):
        _check(-2 <= getattr(options, name) <= 2, name, "must be at least -2 and at most 2")
    num_choices = options.n if options.HasField("n") else 1
    _check(1 <= num_choices <= MAX_CHOICES, "n", f"must be at least 1 and at most {MAX_CHOICES}")
    _check(len(options.stop) <= MAX_STOP_STRINGS, "stop", f"takes at most {MAX_STOP_STRINGS} strings")
    _check(
        all(0 < len(s) <= MAX_STOP_CHARACTERS for s in options.stop),
        "stop",
        f"takes strings of 1 to {MAX_STOP_CHARACTERS} characters",
    )
    check_vocabulary(options.stop_token_ids, "stop_token_ids", capacity)
    stop_ids = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else end_ids)
    _check(
        min_tokens == 0 or not stop_ids.issuperset(range(capacity.vocabulary_size)),
        "stop_token_ids",
        "must leave a token that ends nothing, with 'min_tokens'",
    )
    return Plan(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=options.min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=_logit_bias(options, capacity),
        allowed_token_ids=_allowed_token_ids(options, capacity, stop_ids if min_tokens else frozenset()),
        top_logprobs=_top_logprobs(options),
        seed=options.seed if options.HasField("seed") else secrets.randbits(SEED_BITS),
        stop_strings=tuple(options.stop),
        stop_ids=stop_ids,
        output_token_ids=_output_token_ids(options, num_choices, max_tokens, capacity),
    )


def check_vocabulary(token_ids: Iterable[int], param: str, capacity: Capacity) -> None:
    """Raises: InvalidRequest for an id that the vocabulary has not."""
    for token_id in token_ids:
        _check(
            0 <= token_id < capacity.vocabulary_size,
            param,
            f"holds what is no token: ids go from 0 to {capacity.vocabulary_size - 1}",
        )


def _logit_bias(options: decoder_pb2.GenerationOptions, capacity: Capacity) -> tuple[tuple[int, float], ...]:
    check_vocabulary(options.logit_bias, "logit_bias", capacity)
    is_small = all(-MAX_BIAS <= bias <= MAX_BIAS for bias in options.logit_bias.values())
    _check(is_small, "logit_bias", f"takes numbers from -{MAX_BIAS} to {MAX_BIAS}")
    return tuple(sorted(options.logit_bias.items()))


def _allowed_token_ids(
    options: decoder_pb2.GenerationOptions, capacity: Capacity, early_stops: frozenset[int]
) -> tuple[int, ...] | None:
    if not options.HasField("allowed_token_ids"):
        return None
    allowed = frozenset(options.allowed_token_ids.ids)
    check_vocabulary(allowed, "allowed_token_ids", capacity)
    rule = "must hold a token, and with 'min_tokens' one that ends nothing"
    _check(bool(allowed - early_stops), "allowed_token_ids", rule)
    return tuple(sorted(allowed))


def _top_logprobs(options: decoder_pb2.GenerationOptions) -> int | None:
    is_known = 0 <= options.top_logprobs <= MAX_TOP_LOGPROBS
    _check(is_known, "top_logprobs", f"must be at least 0 and at most {MAX_TOP_LOGPROBS}")
    _check(options.logprobs or options.top_logprobs == 0, "top_logprobs", "is only with 'logprobs'")
    return options.top_logprobs if options.logprobs else None


def _output_token_ids(
    options: decoder_pb2.GenerationOptions, num_choices: int, max_tokens: int, capacity: Capacity
) -> tuple[tuple[int, ...], ...]:
    if not options.output_token_ids:
        return ((),) * num_choices
    _check(
        len(options.output_token_ids) == num_choices,
        "output_token_ids",
        f"takes an entry for each choice, and there are {num_choices}",
    )
    given = tuple(tuple(entry.ids) for entry in options.output_token_ids)
    for token_ids in given:
        check_vocabulary(token_ids, "output_token_ids", capacity)
        _check(
            len(token_ids) <= max_tokens,
            "output_token_ids",
            f"has {len(token_ids)} tokens, more than the {max_tokens} of 'max_tokens'",
        )
    return given


def _check(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidRequest(f"'{param}' {rule}.", param=param)
