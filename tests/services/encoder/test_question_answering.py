"""Question answering over the worker's gRPC: answers equal those of transformers' pipeline, in float32 to 1e-5.

The tests' own release has that pipeline no more, so an older one's answers are kept, and made again by a slow test.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
from encoder_house import worker
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from services.common.rpc_status import from_rpc_error
from services.encoder.tasks.question import _MAX_SPANS, AnswerQuestion
from services.encoder.tasks.spans import Span, WindowAnswers, _best_pairs
from services.encoder.tasks.task import Head
from tests.services.encoder.reference import question_answering as reference
from tests.services.encoder.reference.question_answering import CHECKPOINTS, PARK, Request, requests_of

SCRIPT = Path(reference.__file__)
KEPT = json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))
# What the older release needs in another version than the tests have it.
PACKAGES = ["transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2"]
Answer = Sequence[str | float | int]


def asked(request: Request) -> encoder_pb2.AnswerQuestionRequest:
    inputs = [encoder_pb2.QuestionInContext(question=question, context=context) for question, context in request.pairs]
    parameters = encoder_pb2.AnswerQuestionParameters(**request.parameters)
    return encoder_pb2.AnswerQuestionRequest(inputs=inputs, parameters=parameters)


async def ask(stub: encoder_pb2_grpc.EncoderServiceStub, request: Request) -> list[list[Answer]]:
    told = await stub.AnswerQuestion(asked(request))
    return [[(one.answer, one.score, one.start, one.end) for one in each.answers] for each in told.results]


def assert_equal(told: Sequence[Answer], wanted: Sequence[Answer], *, tolerance: float = 1e-5) -> None:
    """Scores to `tolerance`, and small ones to a ten-thousandth of themselves."""
    assert [(text, start, end) for text, _, start, end in told] == [
        (text, start, end) for text, _, start, end in wanted
    ]
    for (_, score, _, _), (_, other, _, _) in zip(told, wanted, strict=True):
        assert score == pytest.approx(other, abs=min(tolerance, 1e-4 * other), rel=0)


def with_a_score(answers: Sequence[Answer]) -> list[Answer]:
    """Which pairs of score 0 fill up a short list depends on the vector instructions of the machine."""
    return [one for one in answers if one[1] > 0]


@pytest.mark.parametrize("name", CHECKPOINTS)
async def test_answers_equal_the_pipelines_alone_and_among_others(name: str, tmp_path: Path) -> None:
    model = reference.make(name)
    assert reference.digest(model) == KEPT[name]["weights"]
    assert KEPT[name]["answers"].keys() == requests_of(name).keys()
    async with worker(models=f"small={reference.save(name, model, tmp_path)}") as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for key, request in requests_of(name).items():
            together = await ask(stub, request)
            for pair, told, wanted in zip(request.pairs, together, KEPT[name]["answers"][key], strict=True):
                assert_equal(with_a_score(told), with_a_score(wanted))
                if len(request.pairs) > 1:
                    [alone] = await ask(stub, Request([pair], request.parameters))
                    assert_equal(alone, told, tolerance=1e-6)


def answered_by_the_pipeline(folder: Path) -> dict[str, Any]:
    """The older release stands before the tests' own, for one process."""
    packages, written = folder / "packages", folder / "answers.json"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
    subprocess.run([*pip, *PACKAGES], check=True)
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, str(SCRIPT), str(written)], check=True, env=environment)
    answers: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return answers


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_kept_answers_are_the_pipelines(tmp_path: Path) -> None:
    """And on one machine the answers are as many as the pipeline's, those without a score included."""
    fresh = await asyncio.to_thread(answered_by_the_pipeline, tmp_path)
    assert {name: each["weights"] for name, each in fresh.items()} == {n: each["weights"] for n, each in KEPT.items()}
    for name in CHECKPOINTS:
        folder = reference.save(name, reference.make(name), tmp_path / name)
        async with worker(models=f"small={folder}") as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            for key, request in requests_of(name).items():
                answers, kept = fresh[name]["answers"][key], KEPT[name]["answers"][key]
                for told, now, before in zip(await ask(stub, request), answers, kept, strict=True):
                    assert_equal(with_a_score(now), with_a_score(before))
                    assert_equal(told, now)


async def test_questions_that_are_cut_and_parameters_that_do_not_fit(tmp_path: Path) -> None:
    folder = reference.save("bert", reference.make("bert"), tmp_path)
    async with worker(models=f"small={folder}") as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        await assert_cut(stub)
        await assert_refusals(stub)


async def assert_cut(stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    """A long question is whole, as it is to the pipeline, or what its first tokens say. Each word here is a token."""
    words = ["the", "cat", "sat", "on", "a", "mat"] * 15
    for max_question_len in (1, 2, 7, 64, 90, 500):
        kept = " ".join(words[:max_question_len])
        parameters = {"top_k": 3, "max_question_len": max_question_len}
        told = await stub.AnswerQuestion(asked(Request([(" ".join(words), PARK)], parameters)))
        wanted = await stub.AnswerQuestion(asked(Request([(kept, PARK)], {"top_k": 3})))
        assert told.results == wanted.results
        assert told.usage.prompt_tokens == wanted.usage.prompt_tokens
        assert (told.usage.truncated, wanted.usage.truncated) == (max_question_len < 90, False)


async def assert_refusals(stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    one, long = ("who", "the cat"), "the cat " * 400
    for pairs, parameters, param, message in (
        ([], {}, "inputs", "'inputs' needs at least one question."),
        ([one, ("", "the cat")], {}, "inputs", "'inputs[1].question' is an empty text."),
        ([("who", "")], {}, "inputs", "'inputs[0].context' is an empty text."),
        ([one], {"top_k": 0}, "parameters.top_k", "'parameters.top_k' must be at least 1."),
        ([one], {"max_answer_len": -1}, "parameters.max_answer_len", "'parameters.max_answer_len' must be at least 1."),
        ([one], {"max_question_len": 0}, "parameters.max_question_len", "must be at least 1."),
        ([one], {"max_seq_len": 0}, "parameters.max_seq_len", "must be at least 1 and at most 512."),
        ([one], {"max_seq_len": 513}, "parameters.max_seq_len", "must be at least 1 and at most 512."),
        ([one], {"doc_stride": -1}, "parameters.doc_stride", "must be at least 0 and at most 384."),
        ([one], {"doc_stride": 41, "max_seq_len": 40}, "parameters.doc_stride", "must be at least 0 and at most 40."),
        (
            [one, ("who is it", long)],
            {"doc_stride": 34, "max_seq_len": 40},
            "parameters.doc_stride",
            "'parameters.doc_stride' must be less than 34, the tokens of the context beside 'inputs[1].question'.",
        ),
        (
            [("the cat " * 300, long)],
            {"doc_stride": 10, "max_question_len": 380},
            "parameters.doc_stride",
            "must be less than 1, the tokens of the context beside 'inputs[0].question'.",
        ),
        (
            [("who", "cat " * 4000)],
            {"doc_stride": 379},
            "parameters.doc_stride",
            "tokens in windows that overlap by 379, more than 262144.",
        ),
        (
            [("who", "cat " * 1000)],
            {"top_k": 2**31 - 1, "max_answer_len": 2**31 - 1},
            "parameters.top_k",
            "'parameters.top_k' asks for 589824 answers of 4 windows, more than 65536.",
        ),
        (
            [("who", "cat " * 1000)],
            {"top_k": 200, "doc_stride": 378},
            "parameters.top_k",
            "'parameters.top_k' asks for 127510 answers of 311 windows, more than 65536.",
        ),
    ):
        error = await refusal(stub, Request(pairs, parameters))
        assert (error.code, error.param) == ("invalid_request", param)
        assert message in error.message
    too_long = await refusal(stub, Request([one, ("the cat " * 250, "the cat")]))
    assert (too_long.code, too_long.param) == ("context_length_exceeded", "inputs")
    assert too_long.message == (
        "'inputs[1].question' has 500 tokens, a window of 384 has no room left for the context."
    )


async def refusal(stub: encoder_pb2_grpc.EncoderServiceStub, request: Request) -> object:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.AnswerQuestion(asked(request))
    return from_rpc_error(refused.value)


async def test_a_pair_without_a_token_fails_nobody_else(tmp_path: Path) -> None:
    folder = reference.save("plain", reference.make("plain"), tmp_path)
    async with worker(models=f"small={folder}") as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        error = await refusal(stub, Request([("w1", "w2"), ("  ", " \n")]))
        assert (error.code, error.param, error.message) == (
            "invalid_request",
            "inputs",
            "'inputs[1]' needs at least one token.",
        )
        [answers] = await ask(stub, Request([("w1", "w2")]))
    assert [text for text, *_ in answers] == ["w2"]


def test_answers_of_one_text_become_one() -> None:
    context = "The park, the PARK, a cat."
    windows = [
        WindowAnswers([Span(0, 8, 0.25), Span(22, 25, 0.5)], no_answer=0.375),
        WindowAnswers([Span(10, 18, 0.5), Span(20, 25, 0.125)], no_answer=0.4375),
    ]
    request = asked(Request([("where", context)], {"top_k": 3, "handle_impossible_answer": True}))
    [result] = AnswerQuestion().decode(request, Head(None), [windows]).results
    assert [(one.answer, one.score, one.start, one.end) for one in result.answers] == [
        ("The park", 0.75, 0, 8),
        ("cat", 0.5, 22, 25),
        ("", 0.375, 0, 0),
    ]


def test_the_most_answers_that_a_request_may_ask_for_are_merged_at_once() -> None:
    """On the event loop: long ones of a page each, and no two alike."""
    context = "".join(str(number) for number in range(20_000))
    spans = [Span(start, start + 200, 0.5) for start in range(_MAX_SPANS)]
    request = asked(Request([("where", context)], {"top_k": 3}))
    started = time.process_time()
    [result] = AnswerQuestion().decode(request, Head(None), [[WindowAnswers(spans, no_answer=0.0)]]).results
    assert time.process_time() - started < 0.3
    assert [one.start for one in result.answers] == [0, 1, 2]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(1, 50), st.floats(0, 0.9), st.integers(0, 2**32 - 1))
def test_the_best_pairs(num_tokens: int, max_tokens: int, count: int, share_of_zeros: float, seed: int) -> None:
    """Against every pair there is, one by one."""
    random = numpy.random.default_rng(seed)
    start, end = random.random((2, num_tokens), dtype=numpy.float32)
    start[random.random(num_tokens) < share_of_zeros] = 0
    every = [
        (first, last, float(start[first] * end[last]))
        for first in range(num_tokens)
        for last in range(first, min(first + max_tokens, num_tokens))
    ]
    wanted = sorted((pair for pair in every if pair[2] > 0), key=lambda pair: -pair[2])[:count]
    told = _best_pairs(start, end, count, max_tokens)
    assert [pair for pair in told if pair[2] > 0] == wanted
    assert len(told) == min(count, num_tokens**2)
