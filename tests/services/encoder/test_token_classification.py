"""Token classification over the worker's gRPC: entities equal the reference pipeline's, in float32 to 1e-5."""

import asyncio
from pathlib import Path

import grpc
import numpy
import pytest
import real_tokenizers
from encoder_house import worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from real_tokenizers import SENTENCES, Made
from transformers import pipeline

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error
from services.encoder.tasks.entities import Aggregation, Entity, Strategy, Token, without_overlaps

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "E-X-Y"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {name: number for number, name in enumerate(LABELS)}}
STRATEGIES: dict[Strategy, int] = {
    "none": encoder_pb2.AGGREGATION_STRATEGY_NONE,
    "simple": encoder_pb2.AGGREGATION_STRATEGY_SIMPLE,
    "first": encoder_pb2.AGGREGATION_STRATEGY_FIRST,
    "average": encoder_pb2.AGGREGATION_STRATEGY_AVERAGE,
    "max": encoder_pb2.AGGREGATION_STRATEGY_MAX,
}
# Beyond the positions of every small model, so that these are cut; a pad would have no position in RoBERTa's reference.
LONG = ["a" * 500, "Angela Merkel,  in Berlin! " * 80]
TEXTS = [*SENTENCES, *(text for text in NASTY_TEXTS if text and "[PAD]" not in text), *NASTY_NUMBERS, *LONG]
# Words in an order without a period, so that no two windows are alike.
WORDS = [word for sentence in SENTENCES for word in sentence.split()]
BOOK = "  " + " ".join(WORDS[(k * k + k // 7) % len(WORDS)] for k in range(10_000))
Wanted = list[dict[str, object]]

pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words:UserWarning")


def request(inputs: list[str], strategy: Strategy, ignore: list[str] | None = None, **more: object) -> object:
    parameters = encoder_pb2.ClassifyTokensParameters(
        aggregation_strategy=STRATEGIES[strategy],
        ignore_labels=None if ignore is None else common_pb2.Texts(texts=ignore),
        stride=more.pop("stride", None),
    )
    return encoder_pb2.ClassifyTokensRequest(inputs=inputs, parameters=parameters, **more)


def expected(
    made: Made, texts: list[str], strategy: Strategy, ignore: list[str] | None, **more: object
) -> list[Wanted]:
    reference = pipeline("token-classification", model=made.model, tokenizer=made.tokenizer)
    return [reference(text, aggregation_strategy=strategy, ignore_labels=ignore, **more) for text in texts]


def assert_equal(told: encoder_pb2.TokenClassification, wanted: Wanted) -> None:
    for entity, other in zip(told.entities, wanted, strict=True):
        kind = entity.WhichOneof("name")
        index = entity.index if entity.HasField("index") else None
        assert (getattr(entity, kind), entity.word, entity.start, entity.end, index) == (
            other.get(kind),
            other["word"],
            other["start"],
            other["end"],
            other.get("index"),
        )
        assert entity.score == pytest.approx(float(other["score"]), abs=1e-5)


def assert_alike(one: encoder_pb2.TokenClassification, other: encoder_pb2.TokenClassification) -> None:
    for entity, twin in zip(one.entities, other.entities, strict=True):
        assert entity.score == pytest.approx(twin.score, abs=1e-6)
        twin.score = entity.score
        assert entity == twin


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_entities_equal_the_pipelines(family: str, tmp_path: Path) -> None:
    """Each strategy, with labels left out as ever, not at all, or by name; texts alone and all in one request."""
    made = real_tokenizers.make(family, "TokenClassification", tmp_path, **NAMES)
    asked: list[tuple[Strategy, list[str] | None]] = [(strategy, []) for strategy in STRATEGIES]
    asked += [("none", None), ("simple", None), ("none", ["I-PER", "O"]), ("average", ["PER", "I-LOC"])]
    num_entities = 0
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for strategy, ignore in asked:
            told = await stub.ClassifyTokens(request(TEXTS, strategy, ignore, truncate=True))
            wanted = expected(made, TEXTS, strategy, ignore)
            for one, other in zip(told.results, wanted, strict=True):
                assert_equal(one, other)
                num_entities += len(other)
        for text, one in zip(TEXTS, told.results, strict=True):
            alone = await stub.ClassifyTokens(request([text], strategy, ignore, truncate=True))
            assert_alike(alone.results[0], one)
    assert num_entities > 1000


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("stride", [0, 16, 100])
async def test_windows_equal_the_pipelines(family: str, stride: int, tmp_path: Path) -> None:
    made = real_tokenizers.make(family, "TokenClassification", tmp_path, **NAMES)
    texts = [BOOK[:1500], "short", LONG[0]]
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for strategy in ("simple", "first", "average", "max"):
            told = await stub.ClassifyTokens(request(texts, strategy, [], stride=stride))
            wanted = expected(made, texts, strategy, [], stride=stride)
            for one, other in zip(told.results, wanted, strict=True):
                assert_equal(one, other)
            assert len(wanted[0]) > 20
    assert told.usage.prompt_tokens > 3 * 128
    assert not told.usage.truncated


async def test_ten_thousand_words(tmp_path: Path) -> None:
    made = real_tokenizers.make("bert", "TokenClassification", tmp_path, **NAMES)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        told = await stub.ClassifyTokens(request([BOOK], "average", stride=16))
    [wanted] = expected(made, [BOOK], "average", None, stride=16)
    assert_equal(told.results[0], wanted)
    assert len(wanted) > 1000
    assert told.usage.prompt_tokens > 10_000


async def test_a_batch_of_mixed_tasks_changes_nothing(tmp_path: Path) -> None:
    real_tokenizers.make("bert", "TokenClassification", tmp_path / "entities", **NAMES)
    async with worker(models=str(tmp_path / "entities")) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        vectors = encoder_pb2.EmbedTextRequest(input=[encoder_pb2.EmbedTextInput(text=text) for text in SENTENCES * 9])
        requests = [request([text], strategy, []) for text in SENTENCES for strategy in STRATEGIES]
        alone = [await stub.ClassifyTokens(each) for each in requests]
        _, *together = await asyncio.gather(stub.EmbedText(vectors), *(stub.ClassifyTokens(each) for each in requests))
    for one, other in zip(together, alone, strict=True):
        assert_alike(one.results[0], other.results[0])


async def test_refusals_name_the_field(tmp_path: Path) -> None:
    """128 tokens are 126 of the text."""
    real_tokenizers.make("bert", "TokenClassification", tmp_path, **NAMES)
    unknown = encoder_pb2.ClassifyTokensParameters(aggregation_strategy=9)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for refused, code, param, message in (
            (request([], "none"), "invalid_request", "inputs", "'inputs' needs at least one text."),
            (request(["a", ""], "none"), "invalid_request", "inputs", "'inputs[1]' is an empty text."),
            (request(["a", ""], "max", stride=1), "invalid_request", "inputs", "'inputs[1]' is an empty text."),
            (request([], "max", stride=1), "invalid_request", "inputs", "'inputs' needs at least one text."),
            (
                request(["a", "word " * 127], "simple"),
                "context_length_exceeded",
                "inputs",
                "'inputs[1]' has 129 tokens, the model takes 128.",
            ),
            (
                encoder_pb2.ClassifyTokensRequest(inputs=["a"], parameters=unknown),
                "invalid_request",
                "parameters.aggregation_strategy",
                "'parameters.aggregation_strategy' is no known strategy.",
            ),
            (
                request(["a"], "none", stride=5),
                "invalid_request",
                "parameters.stride",
                "'parameters.stride' needs an aggregation strategy other than none.",
            ),
            *(
                (
                    request(["a"], "simple", stride=stride),
                    "invalid_request",
                    "parameters.stride",
                    "'parameters.stride' must be from 0 to 125: a window has 126 tokens of the text.",
                )
                for stride in (-1, 126, 128, 2**31 - 1)
            ),
            (
                request(["word " * 5000], "simple", stride=125),
                "invalid_request",
                "parameters.stride",
                "'inputs' have 624000 tokens in windows that overlap by 125, more than 262144.",
            ),
            (
                request(["a " * 300_000], "simple", stride=0),
                "invalid_request",
                "inputs",
                "'inputs' have 304762 tokens in windows that overlap by 0, more than 262144.",
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ClassifyTokens(refused)
            error = from_rpc_error(caught.value)
            assert (error.code, error.param, error.message) == (code, param, message)
        widest = await stub.ClassifyTokens(request(["word " * 200], "simple", [], stride=125))
        cut = await stub.ClassifyTokens(request(["word " * 200], "simple", [], truncate=True))
        blank = await stub.ClassifyTokens(request([" ", "\n\t"], "simple", []))
        blank_windows = await stub.ClassifyTokens(request([" ", "\n\t"], "simple", [], stride=3))
    # 126 words in a window, and then a window for each word more.
    assert (widest.usage.prompt_tokens, widest.usage.truncated) == (75 * 128, False)
    assert (cut.results[0].entities[-1].end, cut.usage.truncated, cut.usage.prompt_tokens) == (629, True, 128)
    assert [len(one.entities) for one in [*blank.results, *blank_windows.results]] == [0, 0, 0, 0]


# Mic ##ro of York: the scores of O, B-ORG, I-ORG, B-LOC; special tokens have rows too.
TOKENS = (
    Token("mic", 0, 3, 1, is_subword=False),
    Token("##ro", 3, 5, 2, is_subword=True),
    Token("of", 6, 8, 3, is_subword=False),
    Token("york", 9, 13, 4, is_subword=False),
)
SCORES = numpy.log(
    numpy.array(
        [
            [0.25, 0.25, 0.25, 0.25],
            [0.1, 0.5, 0.1, 0.3],
            [0.1, 0.05, 0.05, 0.8],
            [0.6, 0.1, 0.2, 0.1],
            [0.1, 0.1, 0.1, 0.7],
            [0.25, 0.25, 0.25, 0.25],
        ],
        dtype=numpy.float32,
    )
)


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (
            "none",
            [
                Entity("B-ORG", 0.5, "mic", 0, 3, 1),
                Entity("B-LOC", 0.8, "##ro", 3, 5, 2),
                Entity("O", 0.6, "of", 6, 8, 3),
                Entity("B-LOC", 0.7, "york", 9, 13, 4),
            ],
        ),
        (
            "simple",
            [
                Entity("ORG", 0.5, "mic", 0, 3),
                Entity("LOC", 0.8, "##ro", 3, 5),
                Entity("O", 0.6, "of", 6, 8),
                Entity("LOC", 0.7, "york", 9, 13),
            ],
        ),
        (
            "first",
            [Entity("ORG", 0.5, "mic+##ro", 0, 5), Entity("O", 0.6, "of", 6, 8), Entity("LOC", 0.7, "york", 9, 13)],
        ),
        (
            "average",
            [Entity("LOC", 0.55, "mic+##ro", 0, 5), Entity("O", 0.6, "of", 6, 8), Entity("LOC", 0.7, "york", 9, 13)],
        ),
        (
            "max",
            [Entity("LOC", 0.8, "mic+##ro", 0, 5), Entity("O", 0.6, "of", 6, 8), Entity("LOC", 0.7, "york", 9, 13)],
        ),
    ],
)
def test_how_words_get_a_label(strategy: Strategy, wanted: list[Entity]) -> None:
    aggregation = Aggregation(TOKENS, ("O", "B-ORG", "I-ORG", "B-LOC"), strategy, frozenset(), "+".join)
    assert_close(aggregation(SCORES), wanted)
    without_o = Aggregation(TOKENS, ("O", "B-ORG", "I-ORG", "B-LOC"), strategy, frozenset({"O"}), "+".join)
    assert_close(without_o(SCORES), [entity for entity in wanted if entity.label != "O"])


def test_which_neighbours_are_one_entity() -> None:
    """One tag goes on until a B-; a label without B- or I- goes on as I- does; a name is what follows the hyphen."""
    labels = ("B-A", "I-A", "A", "E-B", "I-E-B")
    chosen = [0, 1, 2, 0, 0, 1, 3, 4, 3]
    tokens = tuple(Token(str(k), k, k + 1, k, is_subword=False) for k in range(len(chosen)))
    scores = numpy.log(numpy.eye(5, dtype=numpy.float32)[chosen] * 0.9 + 0.02)
    joined = Aggregation(tokens, labels, "simple", frozenset(), "".join)(scores)
    assert [(entity.label, entity.word) for entity in joined] == [("A", "012"), ("A", "3"), ("A", "45"), ("B", "678")]


def test_which_of_overlapping_entities_stays() -> None:
    """The longer, then the surer; that one overlaps with the next."""
    short, long, sure, other = (
        Entity("A", 0.9, "", 0, 4),
        Entity("B", 0.1, "", 2, 8),
        Entity("C", 0.2, "", 5, 11),
        Entity("D", 0.5, "", 11, 12),
    )
    assert without_overlaps([other, short, sure, long]) == [sure, other]
    assert without_overlaps([short, other]) == [short, other]
    assert without_overlaps([]) == []


def assert_close(told: list[Entity], wanted: list[Entity]) -> None:
    for entity, other in zip(told, wanted, strict=True):
        assert entity.score == pytest.approx(other.score, abs=1e-6)
        assert (entity.label, entity.word, entity.start, entity.end, entity.index) == (
            other.label,
            other.word,
            other.start,
            other.end,
            other.index,
        )
