"""Questions about a passage over REST, from real weights."""

import httpx
import pytest
from running_janus import Stack

PASSAGE = (
    "Nora Lindqvist opened a small bookshop in Bergen in 1994 because she could not find Portuguese novels anywhere. "
    "A paperback costs 12 euros there, a hardback 25. On Thursdays the shop stays open until 9 pm."
)
QUESTIONS = {
    "Who opened the bookshop?": "Nora Lindqvist",
    "Where is the shop?": "Bergen",
    "When was the bookshop opened?": "1994",
    "Why did she open it?": "she could not find Portuguese novels anywhere",
    "How much does a paperback cost?": "12 euros",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_passage_answers(stack: Stack, question: str) -> None:
    body = {"inputs": {"question": question, "context": PASSAGE}}
    response = httpx.post(f"{stack.url}/v1/question-answering", json=body, timeout=30)
    assert response.status_code == 200, response.text
    answered = response.json()
    [[best]] = answered["results"]
    assert best["answer"] == QUESTIONS[question]
    assert PASSAGE[best["start"] : best["end"]] == best["answer"]
    assert answered["model"] == "question-answering"
