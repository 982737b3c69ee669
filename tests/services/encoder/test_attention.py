"""Attention inspection over gRPC: weights equal transformers' own, to 1e-5, and what is made of them."""

import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy
import pytest
import small_models
import torch
from encoder_house import MINILM, worker
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error
from services.encoder.tasks.attention import _View

NONE, MEAN, ROLLOUT = (
    encoder_pb2.ATTENTION_REDUCTION_NONE,
    encoder_pb2.ATTENTION_REDUCTION_MEAN,
    encoder_pb2.ATTENTION_REDUCTION_ROLLOUT,
)
FAMILIES = {
    "bert": small_models.bert,
    "distilbert": small_models.distilbert,
    "roberta": small_models.roberta,
    "electra": small_models.electra,
    "mpnet": small_models.mpnet,
    "modernbert": small_models.modernbert,
    "deberta": small_models.deberta_v2,
}
# Without word 1, which RoBERTa's reference takes for padding.
TEXTS = ["w11 w2 w3", "w90 w4 " * 20, "w7", "w5 w6 w8 " * 23]


async def inspect(stub: Any, *inputs: str, **parameters: Any) -> list[encoder_pb2.InspectedText]:
    request = encoder_pb2.InspectAttentionRequest(
        inputs=inputs, parameters=encoder_pb2.InspectAttentionParameters(**parameters)
    )
    return list((await stub.InspectAttention(request)).results)


def matrix(text: encoder_pb2.InspectedText, index: int = 0) -> numpy.ndarray:
    return numpy.array(text.matrices[index].weights).reshape(len(text.tokens), len(text.tokens))


@torch.inference_mode()
def reference(model: PreTrainedModel, ids: list[int]) -> numpy.ndarray:
    """Shape: `[layers, H, T, T]`."""
    model.set_attn_implementation("eager")
    told = model(torch.tensor([ids]), output_attentions=True).attentions
    return torch.stack([weights[0] for weights in told]).numpy()


@pytest.mark.parametrize("family", FAMILIES)
async def test_weights_equal_the_reference(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    small_models.save(model, tmp_path)
    async with worker(models=str(tmp_path)) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        told = await inspect(stub, *TEXTS)
    for text, shown in zip(TEXTS, told, strict=True):
        ids = [int(word.removeprefix("w")) for word in text.split()]
        assert [token.token for token in shown.tokens] == ids
        expected = reference(model, ids)
        assert [(one.layer, one.head) for one in shown.matrices] == [
            (layer, head) for layer in range(expected.shape[0]) for head in range(expected.shape[1])
        ]
        for index, one in enumerate(shown.matrices):
            numpy.testing.assert_allclose(matrix(shown, index), expected[one.layer, one.head], atol=1e-5)


@pytest.fixture
async def minilm() -> AsyncIterator[encoder_pb2_grpc.EncoderServiceStub]:
    async with worker() as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


async def test_the_real_encoder(minilm: Any) -> None:
    """Chosen layers and heads, their mean, what flows through all layers, and the strongest edges."""
    sentence = "Deep learning is fun."
    ids = PreTrainedTokenizerFast(tokenizer_file=str(MINILM / "tokenizer.json"))(sentence)["input_ids"]
    expected = reference(AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval(), ids)

    [chosen] = await inspect(minilm, sentence, layers=[-1, 0], heads=[3], reduce=NONE)
    assert [token.token_str for token in chosen.tokens] == ["[CLS]", "deep", "learning", "is", "fun", ".", "[SEP]"]
    assert [(token.start, token.end) for token in chosen.tokens][:3] == [(0, 0), (0, 4), (5, 13)]
    assert [(one.layer, one.head) for one in chosen.matrices] == [(0, 3), (5, 3)]
    numpy.testing.assert_allclose(matrix(chosen, 1), expected[5, 3], atol=1e-5)

    [mean] = await inspect(minilm, sentence, layers=[1, 2], heads=[0, 5], reduce=MEAN)
    assert not mean.matrices[0].HasField("layer")
    numpy.testing.assert_allclose(matrix(mean), expected[1:3, [0, 5]].mean(axis=(0, 1)), atol=1e-5)

    [rollout] = await inspect(minilm, sentence, reduce=ROLLOUT)
    flow = numpy.eye(len(ids))
    for layer in expected.mean(axis=1):
        flow = (layer + numpy.eye(len(ids))) / 2 @ flow
    numpy.testing.assert_allclose(matrix(rollout), flow, atol=1e-5)
    numpy.testing.assert_allclose(matrix(rollout).sum(axis=1), 1, atol=1e-5)

    [edges] = await inspect(minilm, sentence, reduce=MEAN, top_k_edges=4)
    words = [token.token_str for token in edges.tokens]
    told = [(words[edge.source], words[edge.target]) for edge in edges.matrices[0].edges]
    assert ("deep", "learning") in told
    weights = [edge.weight for edge in edges.matrices[0].edges]
    own = expected.mean(axis=(0, 1))[1:-1, 1:-1]
    assert weights == pytest.approx(sorted(own.ravel(), reverse=True)[:4], abs=1e-5)
    assert not edges.matrices[0].weights


async def test_a_batch_does_not_change_it(minilm: Any) -> None:
    sentences = ["A cat sat.", "Deep learning is fun, isn't it?", "안녕하세요 😀", "A long one. " * 25]
    together = await inspect(minilm, *sentences, reduce=ROLLOUT)
    for sentence, shown in zip(sentences, together, strict=True):
        [alone] = await inspect(minilm, sentence, reduce=ROLLOUT)
        numpy.testing.assert_allclose(matrix(alone), matrix(shown), atol=1e-6)
        numpy.testing.assert_allclose(matrix(shown).sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"layers": [6]}, "parameters.layers"),
        ({"layers": [0, -7]}, "parameters.layers"),
        ({"heads": [12]}, "parameters.heads"),
        ({"reduce": 9}, "parameters.reduce"),
        ({"top_k_edges": 0}, "parameters.top_k_edges"),
    ],
)
async def test_what_there_is_not(minilm: Any, parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inspect(minilm, "Deep learning.", **parameters)
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == ("invalid_request", param)


def test_the_strongest_edges_come_at_once_and_equal_ones_in_the_order_of_the_text() -> None:
    """As many as an answer holds: 262,144 of 72 matrices, weights of which many are equal."""
    num_tokens, top_k = 123, 3640
    special_mask = [1, *[0] * (num_tokens - 2), 1]
    encoding = SimpleNamespace(special_mask=special_mask)
    view = _View(encoding, None, range(6), range(12), "none", top_k)
    weights_HTT = numpy.random.default_rng(0).random((12, num_tokens, num_tokens), dtype=numpy.float32).round(2)
    started = time.process_time()
    matrices = list(view._each(itertools.repeat(weights_HTT, 6)))
    assert time.process_time() - started < 2
    assert sum(len(one.edges) for one in matrices) == 72 * top_k
    own = range(1, num_tokens - 1)
    every = [(source, target) for source in own for target in own]
    for one in matrices[::13]:
        told = [(edge.source, edge.target, edge.weight) for edge in one.edges]
        best = sorted(every, key=lambda pair: -weights_HTT[one.head][pair])[:top_k]
        assert told == [(*pair, weights_HTT[one.head][pair]) for pair in best]


async def test_an_edge_weighs_as_much_as_four_numbers(minilm: Any) -> None:
    [fits] = await inspect(minilm, "word " * 61, top_k_edges=3640)
    assert sum(len(one.edges) for one in fits.matrices) == 72 * 3640
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inspect(minilm, "word " * 61, top_k_edges=3641)
    assert "would hold 1048608 weights, more than 1048576" in from_rpc_error(refused.value).message


async def test_answers_are_bounded(minilm: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inspect(minilm, "word " * 200)
    error = from_rpc_error(refused.value)
    assert (error.code, error.param) == ("invalid_request", "parameters")
    assert "choose layers, heads, a reduction" in error.message
    [edges] = await inspect(minilm, "word " * 200, top_k_edges=3)
    assert [len(one.edges) for one in edges.matrices] == [3] * 72
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inspect(minilm, "word " * 600, reduce=MEAN)
    assert from_rpc_error(refused.value).code == "context_length_exceeded"
    request = encoder_pb2.InspectAttentionRequest(
        inputs=["word " * 600],
        parameters=encoder_pb2.InspectAttentionParameters(reduce=MEAN),
        truncate=True,
    )
    cut = await minilm.InspectAttention(request)
    assert (len(cut.results[0].tokens), cut.usage.truncated) == (512, True)
