"""The worker over gRPC, in this process: answers equal the reference's to 1e-5 in float32, errors by the table."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import small_models
import torch
from encoder_house import MINILM, ROOT, runner, worker
from transformers import AutoModel, PreTrainedTokenizerFast, pipeline

from janus.v1 import common_pb2, encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from model.adapters import blank
from services.common.rpc_status import from_rpc_error
from services.common.settings import ConfigurationError

TEXTS = ["w1 w2 w3", "w90 w4", "w5 " * 40, "w7"]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
async def test_families_of_berts_shape_are_served(family: str, tmp_path: Path) -> None:
    """Labels equal the pipeline's and vectors a mean of the reference's, up to the longest input that there is."""
    small, kind = {
        "roberta": (small_models.roberta, "RobertaForSequenceClassification"),
        "distilbert": (small_models.distilbert, "DistilBertForSequenceClassification"),
        "electra": (small_models.electra, "ElectraForSequenceClassification"),
    }[family]
    reference = small(kind, num_labels=3)
    small_models.save(reference, tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        pad_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )
    texts = ["w11 w2 w3", "w90 w4", "w5 " * 128, "w7"]
    expected = pipeline("text-classification", model=reference, tokenizer=tokenizer, top_k=None)(texts, batch_size=1)
    async with worker(models=f"small={tmp_path}") as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        told = await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=texts))
        vectors = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text(t) for t in texts]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["w5 " * 129]))
        [model] = (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
    assert from_rpc_error(refused.value).code == "context_length_exceeded"
    assert (list(model.tasks), model.max_input_tokens) == (["embeddings", "classify", "attention"], 128)
    for value, labels, vector, wanted in zip(texts, told.results, vectors.embeddings, expected, strict=True):
        assert [x.label for x in labels.labels] == [x["label"] for x in wanted]
        assert [x.score for x in labels.labels] == pytest.approx([x["score"] for x in wanted], abs=1e-5)
        with torch.inference_mode():
            hidden = reference.base_model(tokenizer(value, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        mean = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
        assert list(vector.values) == pytest.approx(mean, abs=1e-5)


def text(value: str) -> encoder_pb2.EmbedTextInput:
    return encoder_pb2.EmbedTextInput(text=value)


async def test_the_default_encoder() -> None:
    """The real MiniLM: vectors equal a plain mean of the reference's, alone and in a batch; its errors and models."""
    texts = ["A cat.", "안녕하세요 😀", "word " * 510, "שלום עולם", "tab\tand\nnewline"]
    model = AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MINILM / "tokenizer.json"))
    async with worker() as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        together = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text(t) for t in texts]))
        for value, embedding in zip(texts, together.embeddings, strict=True):
            ids = tokenizer(value, truncation=False, padding=False)["input_ids"]
            with torch.inference_mode():
                hidden = model(torch.tensor([ids])).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
            assert list(embedding.values) == pytest.approx(expected, abs=1e-5)
            alone = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text(value)]))
            assert list(alone.embeddings[0].values) == pytest.approx(list(embedding.values), abs=1e-6)
            given = encoder_pb2.EmbedTextInput(tokens=common_pb2.TokenIds(ids=ids))
            by_ids = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[given]))
            assert by_ids.embeddings == alone.embeddings
        short = await stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text("A cat.")], dimensions=64))
        values = short.embeddings[0].values
        assert len(values) == 64
        assert sum(x * x for x in values) == pytest.approx(1, abs=1e-5)
        await assert_sentiment_and_vectors_share_a_batch(stub)
        await assert_refusals(stub)
        models = (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
    described = {m.id: (m.parent, list(m.tasks), list(m.labels), m.max_input_tokens) for m in models}
    assert described == {
        "all-MiniLM-L6-v2": ("", ["embeddings", "attention"], [], 512),
        "question-answering": ("all-MiniLM-L6-v2", ["question-answering"], [], 512),
        "fill-mask": ("all-MiniLM-L6-v2", ["fill-mask"], [], 512),
        "sentiment": ("all-MiniLM-L6-v2", ["classify"], ["negative", "positive"], 512),
    }


async def assert_sentiment_and_vectors_share_a_batch(stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    reviews = encoder_pb2.ClassifyTextRequest(inputs=["A wonderful film.", "Utterly awful."])
    vectors = encoder_pb2.EmbedTextRequest(input=[text("A wonderful film.")])
    alone = (await stub.ClassifyText(reviews), await stub.EmbedText(vectors))
    mixed = await asyncio.gather(
        *(call for _ in range(8) for call in (stub.ClassifyText(reviews), stub.EmbedText(vectors)))
    )
    assert [result.labels[0].label for result in alone[0].results] == ["positive", "negative"]
    for labels, vector in zip(mixed[::2], mixed[1::2], strict=True):
        for one, other in zip(labels.results, alone[0].results, strict=True):
            assert [x.score for x in one.labels] == pytest.approx([x.score for x in other.labels], abs=1e-5)
        assert list(vector.embeddings[0].values) == pytest.approx(list(alone[1].embeddings[0].values), abs=1e-5)


async def assert_refusals(stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    classify, embed = encoder_pb2.ClassifyTextRequest, encoder_pb2.EmbedTextRequest
    unknown = encoder_pb2.EmbedTextInput(tokens=common_pb2.TokenIds(ids=[30522]))
    for request, code, param in (
        (classify(inputs=["x"], model="nobody"), "model_not_found", "model"),
        (classify(inputs=["x"], model="all-MiniLM-L6-v2"), "task_not_supported", "model"),
        (embed(input=[text("x")], model="sentiment"), "task_not_supported", "model"),
        (classify(inputs=[]), "invalid_request", "inputs"),
        (classify(inputs=["fine", ""]), "invalid_request", "inputs"),
        (classify(inputs=["word " * 511]), "context_length_exceeded", "inputs"),
        (embed(input=[text("")]), "invalid_request", "input"),
        (embed(input=[encoder_pb2.EmbedTextInput()]), "invalid_request", "input"),
        (embed(input=[unknown]), "invalid_request", "input"),
        (embed(input=[text("x")], dimensions=385), "invalid_request", "dimensions"),
    ):
        call = stub.ClassifyText if isinstance(request, classify) else stub.EmbedText
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request)
        error = from_rpc_error(refused.value)
        assert (error.code, error.param) == (code, param)
    cut = await stub.ClassifyText(classify(inputs=["word " * 600], truncate=True))
    assert cut.usage.truncated
    assert cut.usage.prompt_tokens == 512


def test_a_model_that_is_no_encoder(tmp_path: Path) -> None:
    small_models.save(small_models.llama(), tmp_path)
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_MODELS: .*LlamaForCausalLM, not an encoder"):
        runner(models=str(tmp_path))


def test_labels_that_can_not_be_told(tmp_path: Path) -> None:
    small_models.save(small_models.bert("BertForSequenceClassification", num_labels=2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"a": "x", "b": "y"}}))
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_MODELS: .*id2label does not name the labels 0 to 1"):
        runner(models=str(tmp_path))


def test_a_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    """A text with a token that the model has no row for would fail everybody in its batch."""
    small_models.save(small_models.bert(vocab_size=95), tmp_path)
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_MODELS: .*a token 95, but the model only 95 rows"):
        runner(models=str(tmp_path))


async def test_a_text_without_a_token_fails_nobody_else(tmp_path: Path) -> None:
    """This tokenizer adds no special tokens, so blanks are nothing at all."""
    small_models.save(small_models.bert("BertForSequenceClassification", num_labels=2), tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        calls = [stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=[t])) for t in ("w1", "w2 w3", "w4", "  ")]
        *answers, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert [len(answer.results) for answer in answers] == [1, 1, 1]
    error = from_rpc_error(refused)
    assert (error.code, error.param) == ("invalid_request", "inputs")


def test_a_kind_of_pooling_that_is_not_served(tmp_path: Path) -> None:
    small_models.save(small_models.bert(), tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text('{"pooling_mode_attention": true}')
    with pytest.raises(ConfigurationError, match="pooling by attention is not served"):
        runner(models=str(tmp_path))


def test_adapters_that_can_not_be_had(tmp_path: Path) -> None:
    model = small_models.save(small_models.bert(), tmp_path / "model")
    nowhere = tmp_path / "adapters"
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_ADAPTERS_DIR: .*adapters: there is no such folder"):
        runner(models=str(model), adapters_dir=nowhere)
    (nowhere / "broken").mkdir(parents=True)
    (nowhere / "broken/adapter.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_ADAPTERS_DIR: .*broken: not an adapter"):
        runner(models=str(model), adapters_dir=nowhere)
    sentiment = ROOT / "model/training/adapters"
    with pytest.raises(ConfigurationError, match=r"adapter '[a-z-]+' is for another model") as caught:
        runner(models=str(model), adapters_dir=sentiment)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="two models of one name"):
        runner(models=f"sentiment={MINILM}", adapters_dir=sentiment)


async def test_a_classifier_gives_vectors_and_takes_adapters_too(tmp_path: Path) -> None:
    """Three heads over one encoder, in one pass, each as if it were alone."""
    reference = small_models.bert("BertForSequenceClassification", num_labels=3)
    folder = small_models.save(reference, tmp_path / "model")
    made = runner(models=str(folder))
    own = blank("mood", ["bad", "good"], made._model, rank=2, seed=3)
    replace(own, up={path: torch.randn(up.shape) for path, up in own.up.items()}).save(
        tmp_path / "adapters/mood", dtype=torch.float32
    )
    async with worker(models=f"base={folder}", adapters_dir=tmp_path / "adapters") as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        models = (await models_pb2_grpc.ModelServiceStub(channel).ListModels(models_pb2.ListModelsRequest())).models
        assert [(m.id, list(m.tasks), list(m.default_tasks)) for m in models] == [
            ("base", ["embeddings", "classify", "attention"], ["embeddings", "classify", "attention"]),
            ("mood", ["classify"], []),
        ]
        busy = encoder_pb2.EmbedTextRequest(input=[text("w1 " * 100)] * 30)
        calls = [
            lambda: stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=TEXTS)),
            lambda: stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=TEXTS, model="mood")),
            lambda: stub.EmbedText(encoder_pb2.EmbedTextRequest(input=[text(t) for t in TEXTS])),
        ]
        alone = [await call() for call in calls]
        _, *together = await asyncio.gather(stub.EmbedText(busy), *(call() for call in calls))
    for answer, single in zip(together[:2], alone[:2], strict=True):
        for one, other in zip(answer.results, single.results, strict=True):
            assert [x.label for x in one.labels] == [x.label for x in other.labels]
            assert [x.score for x in one.labels] == pytest.approx([x.score for x in other.labels], abs=1e-5)
    for vector, other in zip(together[2].embeddings, alone[2].embeddings, strict=True):
        assert list(vector.values) == pytest.approx(list(other.values), abs=1e-5)
    with torch.inference_mode():
        for value, vector in zip(TEXTS, alone[2].embeddings, strict=True):
            ids = [int(word.removeprefix("w")) for word in value.split()]
            hidden = reference.bert(torch.tensor([ids])).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
            assert list(vector.values) == pytest.approx(expected, abs=1e-5)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"JANUS_ENCODER_DEVICE: .*cuda:7"):
        runner(device="cuda:7")
