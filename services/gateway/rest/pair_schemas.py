"""The bodies of tasks on pairs of texts: a question in a context, a query and each of its documents.

A question's inputs are Hugging Face's; a reranking is Jina's and Cohere's, whose clients send documents as texts or as
objects with a text.
"""

from typing import Annotated, Any

from pydantic import Field

from janus.v1 import encoder_pb2
from services.common.errors import InvalidRequest
from services.gateway.rest.fields import TEXT, Body, Int32, Truncate, checked, parsed, ranged
from services.gateway.rest.task_schemas import TaskBody

_QUESTION = {"type": "object", "required": ["question", "context"], "properties": {"question": TEXT, "context": TEXT}}
_DOCUMENT = {"anyOf": [TEXT, {"type": "object", "required": ["text"], "properties": {"text": TEXT}}]}


class QuestionInContext(Body):
    """What is asked, and where the answer stands."""

    question: str
    context: str


class RerankDocument(Body):
    """A document as an object."""

    text: str


def _questions(value: Any) -> list[encoder_pb2.QuestionInContext]:
    if isinstance(value, dict):
        return [_question(value)]
    if isinstance(value, list):
        return [_question(each, index) for index, each in enumerate(value)]
    raise InvalidRequest(
        "'inputs' must be an object with a question and its context, or a list of them.", param="inputs"
    )


def _question(value: Any, *index: int) -> encoder_pb2.QuestionInContext:
    body = parsed(QuestionInContext, value, "inputs", *index)
    return encoder_pb2.QuestionInContext(question=body.question, context=body.context)


def _documents(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise InvalidRequest("'documents' must be a list of texts, or of objects with a text.", param="documents")
    return [
        each if isinstance(each, str) else parsed(RerankDocument, each, "documents", index).text
        for index, each in enumerate(value)
    ]


Questions = Annotated[
    list[encoder_pb2.QuestionInContext],
    *checked(_questions, {"anyOf": [_QUESTION, {"type": "array", "items": _QUESTION, "minItems": 1}]}),
]
Documents = Annotated[list[str], *checked(_documents, {"type": "array", "items": _DOCUMENT, "minItems": 1})]


class QuestionParameters(Body):
    """How a context is read, and which answers are told."""

    top_k: Int32 | None = ranged("parameters.top_k", "How many answers, best first; absent: 1.")
    doc_stride: Int32 | None = ranged(
        "parameters.doc_stride",
        "How many tokens the windows of a long context overlap by; absent: 128, or half of a smaller window.",
    )
    max_answer_len: Int32 | None = ranged("parameters.max_answer_len", "In tokens; absent: 15.")
    max_seq_len: Int32 | None = ranged(
        "parameters.max_seq_len",
        "Tokens of a window with its question; absent: 384, or what the model takes if that is less.",
    )
    max_question_len: Int32 | None = ranged(
        "parameters.max_question_len", "Tokens that a question is cut to; absent: it is read whole."
    )
    handle_impossible_answer: bool = Field(default=False, description="Whether there may be no answer: an empty one.")
    align_to_words: bool | None = Field(
        default=None, description="Whether answers are widened to whole words; absent: yes."
    )

    def message(self) -> encoder_pb2.AnswerQuestionParameters:
        return encoder_pb2.AnswerQuestionParameters(
            top_k=self.top_k,
            doc_stride=self.doc_stride,
            max_answer_len=self.max_answer_len,
            max_seq_len=self.max_seq_len,
            max_question_len=self.max_question_len,
            handle_impossible_answer=self.handle_impossible_answer,
            align_to_words=self.align_to_words,
        )


class QuestionAnsweringRequest(TaskBody):
    """Hugging Face's extractive question answering, with the model in the body."""

    inputs: Questions
    parameters: QuestionParameters = QuestionParameters()

    def request(self) -> encoder_pb2.AnswerQuestionRequest:
        return encoder_pb2.AnswerQuestionRequest(
            model=self.model or "", inputs=self.inputs, parameters=self.parameters.message()
        )


class RerankRequest(TaskBody):
    """Documents to be ranked by how well each answers a query."""

    query: str
    documents: Documents
    top_n: Int32 | None = ranged("top_n", "How many, best first; absent: all.")
    return_documents: bool = Field(default=False, description="Whether each result holds its document.")
    truncate: Truncate = False

    def request(self) -> encoder_pb2.RerankTextsRequest:
        return encoder_pb2.RerankTextsRequest(
            model=self.model or "",
            query=self.query,
            documents=self.documents,
            top_n=self.top_n,
            return_documents=self.return_documents,
            truncate=self.truncate,
        )
