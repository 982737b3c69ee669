"""The shapes of the tasks' answers: one envelope, and in it the results of each task as its clients know them.

`results` has an entry for each input, in order, for a single input too; a reranking is of all its documents together.
Labels, entities, candidates and answers are those of Hugging Face's pipelines. A ranked document is an object with its
text, as Jina's and Cohere's clients expect it.
"""

from typing import Literal, NotRequired

# typing's own, before Python 3.12, does not tell pydantic enough.
from typing_extensions import TypedDict


class TaskUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int
    truncated: bool


class TaskTimings(TypedDict):
    queue_ms: float
    tokenize_ms: float
    inference_ms: float
    total_ms: float


class TaskAnswer(TypedDict):
    """The envelope; `object` and `results` are the task's."""

    id: str
    model: str
    created: int
    usage: TaskUsage
    metrics: TaskTimings


class LabelScore(TypedDict):
    label: str
    score: float


class Classification(TaskAnswer):
    """Labels, best first."""

    object: Literal["classification"]
    results: list[list[LabelScore]]


class ZeroShotClassification(TaskAnswer):
    """The request's labels, best first."""

    object: Literal["zero_shot_classification"]
    results: list[list[LabelScore]]


class Entity(TypedDict):
    """`entity` and `index` of a single token, `entity_group` of an aggregated one."""

    entity: NotRequired[str]
    entity_group: NotRequired[str]
    score: float
    index: NotRequired[int]
    word: str
    start: int
    end: int


class TokenClassification(TaskAnswer):
    """Entities in the order of the text."""

    object: Literal["token_classification"]
    results: list[list[Entity]]


class MaskCandidate(TypedDict):
    score: float
    token: int
    token_str: str
    sequence: str


class MaskFilling(TaskAnswer):
    """Candidates, best first: a list for an input with one mask, a list for each mask of an input with several."""

    object: Literal["fill_mask"]
    results: list[list[MaskCandidate] | list[list[MaskCandidate]]]


class Answer(TypedDict):
    score: float
    start: int
    end: int
    answer: str


class QuestionAnswering(TaskAnswer):
    """Answers, best first."""

    object: Literal["question_answering"]
    results: list[list[Answer]]


class RankedText(TypedDict):
    """A document as Jina's and Cohere's clients expect it."""

    text: str


class RankedDocument(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[RankedText]


class Reranking(TaskAnswer):
    """Documents, best first."""

    object: Literal["rerank"]
    results: list[RankedDocument]


class AttentionEdge(TypedDict):
    source: int
    target: int
    weight: float


class AttentionMatrix(TypedDict):
    """Either its weights, row by row, or its strongest edges; one made of several has no layer or head."""

    layer: int | None
    head: int | None
    weights: NotRequired[list[list[float]]]
    edges: NotRequired[list[AttentionEdge]]


class InspectedText(TypedDict):
    tokens: list[str]
    token_ids: list[int]
    offsets: list[tuple[int, int]]
    matrices: list[AttentionMatrix]


class Attention(TaskAnswer):
    """Which token looks at which."""

    object: Literal["attention"]
    results: list[InspectedText]


BareAnswer = (
    list[list[LabelScore]]
    | list[LabelScore]
    | list[list[Entity]]
    | list[Entity]
    | list[list[MaskCandidate]]
    | list[MaskCandidate]
    | list[list[Answer]]
    | list[Answer]
    | Answer
    | list[list[float]]
)
"""A task's results as Hugging Face's clients expect them, without the envelope."""
