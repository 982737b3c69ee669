"""The adapter that answers questions, through the worker: the figures of its card, on passages that it never saw."""

import json
import random
from pathlib import Path

from encoder_house import worker

from janus.v1 import encoder_pb2, encoder_pb2_grpc
from model.training import questions
from model.training.spans import overlap

ASKED = [
    json.loads(line) for line in Path(questions.__file__).with_name("validation.jsonl").read_text("utf-8").splitlines()
]


async def answers(pairs: list[tuple[str, str]], **parameters: bool) -> list[str]:
    """The best answer to each question about a context."""
    inputs = [encoder_pb2.QuestionInContext(question=question, context=context) for question, context in pairs]
    chosen = encoder_pb2.AnswerQuestionParameters(**parameters)
    async with worker() as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        response = await stub.AnswerQuestion(encoder_pb2.AnswerQuestionRequest(inputs=inputs, parameters=chosen))
    assert response.model == "question-answering"
    return [result.answers[0].answer for result in response.results]


async def test_the_figures_of_the_card() -> None:
    told = await answers([(one["question"], one["context"]) for one in ASKED])
    shared = [overlap(text, one["answer"]) for text, one in zip(told, ASKED, strict=True)]
    assert sum(shared) / len(shared) > 0.89
    assert sum(one == 1 for one in shared) / len(shared) > 0.84


async def test_a_passage_may_have_no_answer() -> None:
    """Asked of a passage about something else, most questions get none; of their own, next to all get one."""
    own = await answers([(one["question"], one["context"]) for one in ASKED], handle_impossible_answer=True)
    assert own.count("") / len(own) < 0.03
    chance = random.Random(1)
    contexts = sorted({one["context"] for one in ASKED})
    foreign = [
        (one["question"], chance.choice([context for context in contexts if context != one["context"]]))
        for one in ASKED
    ]
    told = await answers(foreign, handle_impossible_answer=True)
    assert told.count("") / len(told) > 0.7
