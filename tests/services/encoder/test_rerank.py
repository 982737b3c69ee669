"""Reranking over gRPC: scores and order equal sentence-transformers' CrossEncoder to 1e-5 in float32."""

import json
from pathlib import Path

import grpc
import numpy
import pytest
import real_tokenizers
from encoder_house import runner, worker
from nasty_texts import NASTY_NUMBERS, NASTY_TEXTS
from sentence_transformers import CrossEncoder

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from services.common.rpc_status import from_rpc_error
from services.common.settings import ConfigurationError
from services.encoder.tasks.labels import Labels, UnknownLabels
from services.encoder.tasks.rerank import RerankTexts, score_function
from services.encoder.tasks.task import Head

QUERY = "Which city did the cat see?"
DOCUMENTS = [text for text in NASTY_TEXTS + NASTY_NUMBERS if text] + real_tokenizers.SENTENCES
FEW = ["The cat saw Paris.", "Nothing at all", "안녕하세요", "The cat saw Paris.", "a b c d e f g h"]


def checkpoint(folder: Path, family: str = "bert", **changes: object) -> real_tokenizers.Made:
    made = real_tokenizers.make(family, "SequenceClassification", folder, **{"num_labels": 1, **changes})
    made.tokenizer.save_pretrained(folder)
    return made


async def rerank(folder: Path, query: str, documents: list[str], **options: object) -> encoder_pb2.RerankTextsResponse:
    async with worker(models=str(folder)) as channel:
        request = encoder_pb2.RerankTextsRequest(query=query, documents=documents, **options)
        return await encoder_pb2_grpc.EncoderServiceStub(channel).RerankTexts(request)


def assert_equal(
    told: encoder_pb2.RerankTextsResponse, reference: CrossEncoder, query: str, documents: list[str]
) -> None:
    scores = reference.predict([(query, document) for document in documents], batch_size=1)
    found = {one.index: one.relevance_score for one in told.results}
    assert sorted(found) == list(range(len(documents)))
    assert [found[i] for i in range(len(documents))] == pytest.approx(scores.tolist(), abs=1e-5)
    in_order = [one.relevance_score for one in told.results]
    assert in_order == sorted(in_order, reverse=True)


@pytest.mark.parametrize("family", real_tokenizers.FAMILIES)
async def test_families(family: str, tmp_path: Path) -> None:
    """On documents that tokenizers get wrong, those that are too long cut."""
    checkpoint(tmp_path, family)
    told = await rerank(tmp_path, QUERY, DOCUMENTS, truncate=True)
    assert_equal(told, CrossEncoder(str(tmp_path), device="cpu"), QUERY, DOCUMENTS)


@pytest.mark.parametrize(
    ("num_query", "num_document"), [(3, 200), (200, 3), (90, 90), (200, 201), (63, 63), (62, 70), (70, 62), (64, 300)]
)
async def test_the_longer_text_is_cut_first(num_query: int, num_document: int, tmp_path: Path) -> None:
    """128 positions, three of them for special tokens: as many tokens of each as the reference keeps."""
    checkpoint(tmp_path)
    words = real_tokenizers.SENTENCES[0].rstrip(".").split() + real_tokenizers.SENTENCES[6].rstrip(".").split()
    query = " ".join((words * num_query)[:num_query])
    documents = [" ".join((words[::-1] * num_document)[:num_document])]
    told = await rerank(tmp_path, query, documents, truncate=True)
    assert told.usage.truncated == (num_query + num_document > 125)
    assert_equal(told, CrossEncoder(str(tmp_path), device="cpu"), query, documents)


NEWEST = "config_sentence_transformers.json"


@pytest.mark.parametrize(
    ("config", "newest"),
    [
        ({}, None),
        ({"problem_type": "regression"}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}}, None),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, None),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, None),
        ({"sbert_ce_default_activation_function": None}, None),
        ({}, {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"},
        ),
    ],
)
async def test_what_becomes_of_a_score(config: dict[str, object], newest: object, tmp_path: Path) -> None:
    """A sigmoid unless a file says otherwise, in each of the places where one does."""
    checkpoint(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    if newest is not None:
        (tmp_path / NEWEST).write_text(json.dumps(newest))
        module = {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        }
        (tmp_path / "modules.json").write_text(json.dumps([module]))
        (tmp_path / "sentence_bert_config.json").write_text(
            json.dumps(
                {
                    "transformer_task": "sequence-classification",
                    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
                    "module_output_name": "scores",
                }
            )
        )
    assert_equal(await rerank(tmp_path, QUERY, FEW), CrossEncoder(str(tmp_path), device="cpu"), QUERY, FEW)


async def test_as_the_reference_saves_its_own(tmp_path: Path) -> None:
    checkpoint(tmp_path / "made")
    reference = CrossEncoder(str(tmp_path / "made"), device="cpu")
    reference.save(str(tmp_path / "saved"), create_model_card=False)
    assert_equal(await rerank(tmp_path / "saved", QUERY, FEW), reference, QUERY, FEW)


@pytest.mark.parametrize(
    ("config", "newest", "message"),
    [
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
            None,
            "torch.*Tanh is not served",
        ),
        ({"sentence_transformers": {"activation_fn": "mine.Sigmoid"}}, None, "mine.Sigmoid is not served"),
        ({}, {"activation_fn": "torch.nn.modules.activation.Softmax"}, "Softmax is not served"),
        ({}, {"activation_fn": 3}, "can't be read"),
        ({"sentence_transformers": [1]}, None, "can't be read"),
        ({}, [1], "can't be read"),
    ],
)
def test_functions_that_are_not_served(config: dict[str, object], newest: object, message: str, tmp_path: Path) -> None:
    if newest is not None:
        (tmp_path / NEWEST).write_text(json.dumps(newest))
    with pytest.raises(UnknownLabels, match=message):
        score_function(tmp_path, config)


def test_a_refused_function_names_the_setting(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / NEWEST).write_text('{"activation_fn": "torch.nn.modules.activation.Tanh"}')
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_MODELS: .*Tanh is not served"):
        runner(models=str(tmp_path))


async def test_what_is_answered(tmp_path: Path) -> None:
    """Equal documents in the request's order; as many as asked for, or as there are; texts on request."""
    checkpoint(tmp_path)
    everything = await rerank(tmp_path, QUERY, FEW, return_documents=True, top_n=99)
    assert len(everything.results) == len(FEW)
    assert all(one.document == FEW[one.index] for one in everything.results)
    order = [one.index for one in everything.results]
    assert order.index(3) == order.index(0) + 1
    assert everything.results[order.index(0)].relevance_score == everything.results[order.index(3)].relevance_score
    best = await rerank(tmp_path, QUERY, FEW, top_n=2)
    assert [one.index for one in best.results] == order[:2]
    assert not any(one.HasField("document") for one in best.results)
    assert best.usage.prompt_tokens == everything.usage.prompt_tokens


def test_equal_scores_keep_the_order_of_the_request() -> None:
    head = Head(None, labels=Labels(("score",), "sigmoid"))
    request = encoder_pb2.RerankTextsRequest(query="q", documents="abcd")
    logits = [numpy.array([x]) for x in (0.5, 2.0, 0.5, 2.0)]
    told = RerankTexts().decode(request, head, [logits]).results
    assert [one.index for one in told] == [1, 3, 0, 2]


async def test_refusals(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    request = encoder_pb2.RerankTextsRequest
    long = "cat " * 126
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for given, code, param, message in (
            (request(query="", documents=FEW), "invalid_request", "query", "'query' is an empty text"),
            (request(query=QUERY), "invalid_request", "documents", "'documents' needs at least one text"),
            (request(query=QUERY, documents=["a", ""]), "invalid_request", "documents", "'documents[1]' is an empty"),
            (request(query=QUERY, documents=FEW, top_n=0), "invalid_request", "top_n", "at least 1"),
            (
                request(query="cat", documents=["a", long]),
                "context_length_exceeded",
                "documents",
                "'documents[1]' has 130 tokens, the model takes 128",
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.RerankTexts(given)
            error = from_rpc_error(refused.value)
            assert (error.code, error.param) == (code, param)
            assert message in error.message
        fits = await stub.RerankTexts(request(query="cat", documents=["cat " * 124]))
        assert (fits.usage.prompt_tokens, fits.usage.truncated) == (128, False)


async def test_a_classifier_of_several_labels_ranks_nothing(tmp_path: Path) -> None:
    """Nor does a function for its scores keep it from being served."""
    checkpoint(tmp_path, num_labels=3)
    (tmp_path / NEWEST).write_text('{"activation_fn": "torch.nn.modules.activation.Softmax"}')
    async with worker(models=str(tmp_path)) as channel:
        [model] = (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await encoder_pb2_grpc.EncoderServiceStub(channel).RerankTexts(
                encoder_pb2.RerankTextsRequest(query="q", documents=["d"])
            )
    assert "classify" in model.tasks
    assert "rerank" not in model.tasks
    assert from_rpc_error(refused.value).code == "task_not_supported"
