"""What a request may say, checked on the message itself, so that REST and gRPC refuse alike.

Here stands all that holds for every model; lengths, vocabulary and templates are the worker's to check. `param` names
the field as both transports spell it. The ranges are also what the OpenAPI document shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

from google.protobuf.message import Message

from janus.v1 import decoder_pb2, encoder_pb2, tokenizer_pb2
from services.common.errors import InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 1000
MAX_CHOICES = 128
MAX_BIAS = 100
MAX_INPUTS = 4096
"""Texts of one request, or pairs of a text and a label; a worker bounds their tokens."""
ROLES = ("system", "developer", "user", "assistant")
_NO_AGGREGATION = (
    encoder_pb2.AGGREGATION_STRATEGY_UNSPECIFIED,
    encoder_pb2.AGGREGATION_STRATEGY_NONE,
)


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both allowed unless `is_low_open`."""

    low: float
    high: float | None = None
    is_low_open: bool = False

    def __contains__(self, value: float) -> bool:
        is_above = value > self.low if self.is_low_open else value >= self.low
        return is_above and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.is_low_open else f"at least {self.low:g}"
        return low if self.high is None else f"{low} and at most {self.high:g}"

    @property
    def json_schema(self) -> dict[str, float]:
        low = {"exclusiveMinimum" if self.is_low_open else "minimum": self.low}
        return low if self.high is None else {**low, "maximum": self.high}


RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, is_low_open=True),
    "min_p": Range(0, 1),
    "top_k": Range(0),
    "repetition_penalty": Range(0, is_low_open=True),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "n": Range(1, MAX_CHOICES),
    "top_logprobs": Range(0, 20),
    "max_tokens": Range(1),
    "min_tokens": Range(0),
    "dimensions": Range(1),
    "parameters.top_k": Range(1),
    "parameters.stride": Range(0),
    "parameters.doc_stride": Range(0),
    "parameters.max_answer_len": Range(1),
    "parameters.max_seq_len": Range(1),
    "parameters.max_question_len": Range(1),
    "parameters.top_k_edges": Range(1),
    "top_n": Range(1),
}


@singledispatch
def validate(request: Message) -> None:
    """Raises InvalidRequest for what no model could serve."""
    raise TypeError(f"no validation for {type(request).__name__}")


@validate.register
def _(request: encoder_pb2.ClassifyTextRequest) -> None:
    _require_texts("inputs", request.inputs)
    _require_ranges("parameters.", request.parameters, "top_k")
    if request.parameters.function_to_apply not in encoder_pb2.FunctionToApply.values():
        raise InvalidRequest(
            "'parameters.function_to_apply' is no known function.", param="parameters.function_to_apply"
        )


@validate.register
def _(request: encoder_pb2.ClassifyZeroShotRequest) -> None:
    _require_texts("inputs", request.inputs)
    labels = request.parameters.candidate_labels
    _require_texts("parameters.candidate_labels", labels)
    if len(request.inputs) * len(labels) > MAX_INPUTS:
        raise InvalidRequest(
            f"{len(request.inputs)} inputs with {len(labels)} labels are more than {MAX_INPUTS} pairs: send several "
            "requests.",
            param="inputs",
        )
    if request.parameters.HasField("hypothesis_template") and request.parameters.hypothesis_template.count("{}") != 1:
        param = "parameters.hypothesis_template"
        raise InvalidRequest(f"'{param}' must hold {{}} once, in the place of the label.", param=param)


@validate.register
def _(request: encoder_pb2.ClassifyTokensRequest) -> None:
    _require_texts("inputs", request.inputs)
    parameters = request.parameters
    if parameters.aggregation_strategy not in encoder_pb2.AggregationStrategy.values():
        param = "parameters.aggregation_strategy"
        raise InvalidRequest(f"'{param}' is no known strategy.", param=param)
    _require_ranges("parameters.", parameters, "stride")
    if parameters.HasField("stride") and parameters.aggregation_strategy in _NO_AGGREGATION:
        param = "parameters.stride"
        raise InvalidRequest(f"'{param}' needs an aggregation_strategy other than none.", param=param)


@validate.register
def _(request: encoder_pb2.FillMaskRequest) -> None:
    _require_texts("inputs", request.inputs)
    _require_ranges("parameters.", request.parameters, "top_k")
    if request.parameters.targets:
        _require_texts("parameters.targets", request.parameters.targets)


@validate.register
def _(request: encoder_pb2.AnswerQuestionRequest) -> None:
    if not request.inputs:
        raise InvalidRequest("'inputs' needs at least one question.", param="inputs")
    _require_count("inputs", request.inputs)
    for index, each in enumerate(request.inputs):
        for name, text in (("question", each.question), ("context", each.context)):
            if not text:
                raise InvalidRequest(f"'inputs[{index}].{name}' is an empty text.", param="inputs")
    lengths = ("doc_stride", "max_answer_len", "max_seq_len", "max_question_len")
    _require_ranges("parameters.", request.parameters, "top_k", *lengths)


@validate.register
def _(request: encoder_pb2.RerankTextsRequest) -> None:
    if not request.query:
        raise InvalidRequest("'query' is an empty text.", param="query")
    _require_texts("documents", request.documents)
    _require_ranges("", request, "top_n")


@validate.register
def _(request: encoder_pb2.InspectAttentionRequest) -> None:
    _require_texts("inputs", request.inputs)
    if request.parameters.reduce not in encoder_pb2.AttentionReduction.values():
        raise InvalidRequest("'parameters.reduce' is no known reduction.", param="parameters.reduce")
    _require_ranges("parameters.", request.parameters, "top_k_edges")


@validate.register
def _(request: encoder_pb2.EmbedTextRequest) -> None:
    if not request.input:
        raise InvalidRequest("'input' needs at least one text.", param="input")
    _require_count("input", request.input)
    for each in request.input:
        if not (each.text or each.tokens.ids):
            raise InvalidRequest("'input' holds an empty text; there is nothing to embed.", param="input")
        _require_token_ids("input", each.tokens.ids)
    _require_ranges("", request, "dimensions")


@validate.register
def _(request: decoder_pb2.GenerateRequest) -> None:
    match request.WhichOneof("prompt"):
        case None:
            raise InvalidRequest("'prompt' is required.", param="prompt")
        case "token_ids":
            if not request.token_ids.ids:
                raise InvalidRequest("'prompt' needs at least one token.", param="prompt")
            _require_token_ids("prompt", request.token_ids.ids)
    _validate_options(request.options)


@validate.register
def _(request: decoder_pb2.ChatRequest) -> None:
    _require_messages(request.messages)
    if request.options.echo:
        raise InvalidRequest("'echo' is only for completions.", param="echo")
    if request.continue_final_message and request.add_generation_prompt:
        what = "'add_generation_prompt' opens a new message; with 'continue_final_message' it must be false."
        raise InvalidRequest(what, param="add_generation_prompt")
    _validate_options(request.options)


@validate.register
def _(request: tokenizer_pb2.TokenizeTextRequest) -> None:
    match request.WhichOneof("input"):
        case None:
            raise InvalidRequest("'prompt' or 'messages' is required.", param="prompt")
        case "messages":
            _require_messages(request.messages.messages)
        case _ if request.HasField("add_generation_prompt"):
            raise InvalidRequest("'add_generation_prompt' is only for 'messages'.", param="add_generation_prompt")


@validate.register
def _(request: tokenizer_pb2.DetokenizeTokensRequest) -> None:
    _require_token_ids("tokens", request.tokens)


def _validate_options(options: decoder_pb2.GenerationOptions) -> None:
    _require_ranges("", options, "temperature", "top_p", "min_p", "top_k", "min_tokens", "n", "top_logprobs")
    _require_ranges("", options, "repetition_penalty", "presence_penalty", "frequency_penalty")
    if not (options.echo and options.max_tokens == 0):
        _require_ranges("", options, "max_tokens")
    if options.HasField("max_tokens") and options.min_tokens > options.max_tokens:
        raise InvalidRequest("'min_tokens' can't be more than 'max_tokens'.", param="min_tokens")
    if options.HasField("top_logprobs") and options.top_logprobs > 0 and not options.logprobs:
        raise InvalidRequest("'top_logprobs' is only with 'logprobs'.", param="top_logprobs")
    if not all(-MAX_BIAS <= bias <= MAX_BIAS for bias in options.logit_bias.values()):
        raise InvalidRequest(f"'logit_bias' takes numbers from -{MAX_BIAS} to {MAX_BIAS}.", param="logit_bias")
    _require_token_ids("logit_bias", list(options.logit_bias))
    if len(options.stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"'stop' takes at most {MAX_STOP_STRINGS} strings.", param="stop")
    if "" in options.stop:
        raise InvalidRequest("'stop' can't hold an empty string.", param="stop")
    if any(len(stop) > MAX_STOP_CHARACTERS for stop in options.stop):
        raise InvalidRequest(f"'stop' takes strings of at most {MAX_STOP_CHARACTERS} characters.", param="stop")
    _require_token_ids("stop_token_ids", options.stop_token_ids)
    if options.HasField("allowed_token_ids"):
        if not options.allowed_token_ids.ids:
            raise InvalidRequest("'allowed_token_ids' needs at least one token.", param="allowed_token_ids")
        _require_token_ids("allowed_token_ids", options.allowed_token_ids.ids)


def _require_ranges(prefix: str, message: Message, *fields: str) -> None:
    """Fields that are absent are fine."""
    for field in fields:
        param = prefix + field
        if message.HasField(field) and getattr(message, field) not in RANGES[param]:
            raise InvalidRequest(f"'{param}' must be {RANGES[param]}.", param=param)


def _require_count(name: str, given: Sequence[object]) -> None:
    if len(given) > MAX_INPUTS:
        raise InvalidRequest(
            f"'{name}' has {len(given)} entries, more than {MAX_INPUTS}: send several requests.", param=name
        )


def _require_texts(name: str, texts: Sequence[str]) -> None:
    if not texts:
        raise InvalidRequest(f"'{name}' needs at least one text.", param=name)
    _require_count(name, texts)
    for index, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"'{name}[{index}]' is an empty text.", param=name)


def _require_messages(messages: Sequence[decoder_pb2.ChatMessage]) -> None:
    if not messages:
        raise InvalidRequest("'messages' needs at least one message.", param="messages")
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            param = f"messages[{index}].role"
            raise InvalidRequest(f"'{param}' must be one of {', '.join(ROLES)}.", param=param)


def _require_token_ids(name: str, token_ids: Sequence[int]) -> None:
    if token_ids and min(token_ids) < 0:
        raise InvalidRequest(f"'{name}' can't hold a negative token id.", param=name)
