"""Large answers: the same JSON in pieces, made where the event loop does not wait for them."""

import threading
from typing import Any

import pytest
from gateway_house import House
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from janus.v1 import encoder_pb2
from services.gateway.rest import answers
from services.gateway.rest.answers import json_answer, json_pieces, to_json
from services.gateway.validation import MAX_INPUTS

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
LISTS_OF_ONE_KIND = st.lists(st.integers(), max_size=9) | st.lists(st.text(), max_size=9)
VALUES = st.recursive(
    SCALARS | LISTS_OF_ONE_KIND,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=40,
)


@hypothesis_settings(max_examples=300, deadline=None)
@given(VALUES, st.integers(1, 12))
def test_the_pieces_are_what_one_text_would_be(value: Any, piece_values: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_PIECE_VALUES", piece_values)
        assert "".join(json_pieces(value)) == to_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {"embeddings": [[0.5] * 384] * 1000},
        {"matrices": [{"edges": [{"source": 1, "target": 2, "weight": 0.5}] * 100_000}]},
        {"matrices": [{"layer": 1, "weights": [[0.5] * 500] * 500}], "tokens": [1] * 200_000},
        {"tokens": [1] * 200_000, "offsets": [(3, 4)] * 200_000},
        [[{"label": "a", "score": 0.5}], [{"label": "b", "score": 0.5}] * 50_000],
    ],
    ids=["vectors", "edges", "matrices", "tokens", "uneven"],
)
def test_no_piece_is_large_and_none_is_a_value_alone(value: Any) -> None:
    pieces = list(json_pieces(value))
    assert max(map(len, pieces)) <= 100_000
    assert len(pieces) < len("".join(pieces)) / 5000
    assert "".join(pieces) == to_json(value)


@pytest.mark.parametrize(("num_vectors", "is_large"), [(2, False), (200, True)])
async def test_only_a_large_answer_is_made_in_a_thread(num_vectors: int, is_large: bool) -> None:
    response = encoder_pb2.EmbedTextResponse(embeddings=[encoder_pb2.Embedding(values=[0.5] * 384)] * num_vectors)
    threads = []

    def answer() -> Any:
        threads.append(threading.current_thread())
        return {"data": [list(each.values) for each in response.embeddings]}

    made = await json_answer(response, answer, {"Server-Timing": "a"})
    assert (threads[0] is not threading.current_thread()) == is_large
    assert made.body == to_json(answer()).encode()
    assert (made.headers["content-type"], made.headers["server-timing"]) == ("application/json", "a")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/embeddings", {"input": ["é"] * MAX_INPUTS}, "data"),
        ("/v1/classify", {"inputs": ["é"] * MAX_INPUTS}, "results"),
        ("/models/acme/minilm", {"inputs": ["é"] * MAX_INPUTS}, None),
        ("/v1/tokenize", {"prompt": "é " * 50_000, "return_token_strs": True}, "tokens"),
    ],
)
async def test_every_route_with_large_answers(house: House, path: str, body: dict[str, Any], field: str | None) -> None:
    answer = (await house.http.post(path, json=body)).json()
    assert len(answer if field is None else answer[field]) == (50_000 if "prompt" in body else MAX_INPUTS)
