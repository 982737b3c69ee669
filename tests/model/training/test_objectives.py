"""Each objective: its file is read, its loss falls on a small set, and what it learnt holds for what it did not see."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import training_house
from training_house import SPECIAL

from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.encoder import EncoderModel
from model.training.causal_language import CausalLanguage, CausalOptions
from model.training.checkpoint_folder import write_checkpoint
from model.training.classification import Classification, ClassificationOptions
from model.training.masked_language import Hidden, MaskedLanguage, MaskingOptions, repetition
from model.training.objective import Objective
from model.training.recipe import Recipe
from model.training.spans import SpanOptions, Spans, overlap
from model.training.trainer import Trainer

MASK = SPECIAL["[MASK]"]


def objective(kind: str, folder: Path, **changes: Any) -> Objective[Any]:
    tokenizer = open_checkpoint(folder).tokenizer()
    match kind:
        case "classification":
            options = {"labels": ("bad", "good"), "max_input_tokens": 64, **changes}
            return Classification(ClassificationOptions(**options), tokenizer, batch_tokens=512)
        case "masked-language":
            options = {"max_input_tokens": 64, "mask_ratio": 0.25, **changes}
            return MaskedLanguage(MaskingOptions(**options), tokenizer, batch_tokens=512)
        case "causal-language":
            return CausalLanguage(CausalOptions(max_input_tokens=64), tokenizer, batch_tokens=512)
    return Spans(SpanOptions(max_input_tokens=40, stride=8, max_answer_tokens=6), tokenizer, batch_tokens=512)


def rated(path: Path, count: int, seed: int) -> Path:
    """Words 10 to 14 are bad, 15 to 19 good; the rest of the sentence says nothing."""
    chance = random.Random(seed)
    lines = ["source\trating\ttext"]
    for _ in range(count):
        word = chance.randrange(10, 20)
        fillers = " ".join(f"w{chance.randrange(90, 96)}" for _ in range(chance.randrange(2, 5)))
        lines.append(f"made\t{2.0 if word >= 15 else -2.0}\tw{word} {fillers}")
    path.write_text("\n".join(lines) + "\n")
    return path


def counted(path: Path, count: int, seed: int) -> Path:
    """Words that count up from a random one: each follows from its neighbours."""
    chance = random.Random(seed)
    starts = [chance.randrange(4, 30) for _ in range(count)]
    path.write_text("\n".join(" ".join(f"w{start + i}" for i in range(6)) for start in starts) + "\n")
    return path


def asked(path: Path, count: int, seed: int) -> Path:
    """The answer is the word from 10 to 19 in the passage; one passage in eight has none."""
    chance = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [f"w{number}" for number in chance.sample(range(20, 90), 6)]
        answer = f"w{chance.randrange(10, 20)}" if chance.random() < 0.875 else ""
        if answer:
            words[chance.randrange(6)] = answer
        context = " ".join(words)
        line = {"context": context, "question": "w5", "answer": answer, "start": context.find(answer)}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def run(kind: str, make: Any, folder: Path, count: int, **changes: Any) -> tuple[Trainer[Any], Recipe]:
    model = training_house.small(folder / "model", "llama" if kind == "causal-language" else "bert")
    made = objective(kind, folder / "model")
    recipe = training_house.recipe(kind, folder, **changes)
    training, validation = (
        made.read(make(folder / "training", count, 1)),
        made.read(make(folder / "validation", 100, 2)),
    )
    trainer = training_house.trainer(model, made, recipe, training, validation)
    trainer.run()
    return trainer, recipe


def fall(trainer: Trainer[Any]) -> float:
    return sum(trainer.losses[-10:]) / sum(trainer.losses[:10])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_classification(tmp_path: Path, method: str) -> None:
    trainer, _ = run("classification", rated, tmp_path, 300, method=method, dropout=0.05)
    assert fall(trainer) < 0.7
    figures = trainer.figures()
    assert figures["accuracy"] > 0.85
    assert figures["accuracy"] == figures["accuracy_certain"] == figures["accuracy_certain_made"]
    adapter = trainer.tuned.finish()
    assert adapter is not None
    assert (adapter.task, adapter.labels) == ("classify", ("bad", "good"))
    assert {tensor.shape[0] for tensor in adapter.down.values()} == {8}
    assert trainer.figures()["accuracy"] > 0.8, "what is saved does as what was trained"


def test_masked_language(tmp_path: Path) -> None:
    trainer, _ = run("masked-language", counted, tmp_path, 300, learning_rate=3e-3)
    assert fall(trainer) < 0.5
    assert trainer.figures()["accuracy"] > 0.5
    adapter = trainer.tuned.finish()
    assert adapter is not None
    assert adapter.task == "fill-mask"
    assert "decoder.weight" not in adapter.head, "the token table is the encoder's"


def test_repeating_a_token_costs_what_it_is_given() -> None:
    """Two rows: the tokens 1, 3, 5, 2 where 7 stood, and 1, 2 (of 1, 3, 2) where 3 stood, each with a share of 0.1."""
    hidden = [Hidden([1, 3, 5, 2], [1], [7]), Hidden([1, 3, 2], [1], [3])]
    cost = repetition(torch.zeros(2, 10), hidden)
    assert cost.item() == pytest.approx((4 + 2) * -math.log(0.9) / 2)
    unlikely = torch.zeros(2, 10).index_fill(1, torch.tensor([1, 2, 3, 5]), -20.0)
    assert repetition(unlikely, hidden).item() == pytest.approx(0.0, abs=1e-6)


def test_the_token_table_stays(tmp_path: Path) -> None:
    trainer, _ = run("masked-language", counted, tmp_path, 50, num_epochs=1)
    model = trainer.tuned.model
    assert isinstance(model, EncoderModel)
    untrained = load(open_checkpoint(tmp_path / "model"), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(untrained, EncoderModel)
    assert torch.equal(model.encoder.embeddings.tokens.weight, untrained.encoder.embeddings.tokens.weight)


def test_spans(tmp_path: Path) -> None:
    trainer, _ = run("spans", asked, tmp_path, 400, learning_rate=3e-3, num_epochs=20, batch_tokens=256)
    assert fall(trainer) < 0.5
    figures = trainer.figures()
    assert figures["exact_match"] > 0.7
    assert figures["f1"] >= figures["exact_match"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_causal_language(tmp_path: Path, method: str) -> None:
    trainer, _ = run("causal-language", counted, tmp_path, 200, method=method, learning_rate=3e-3)
    assert fall(trainer) < 0.7
    before = trainer.figures()
    assert trainer.tuned.finish() is None
    model, source = trainer.tuned.model, open_checkpoint(tmp_path / "model")
    assert isinstance(model, CausalLanguageModel)
    write_checkpoint(model, source, tmp_path / "written", dtype=torch.float32)
    again = load(open_checkpoint(tmp_path / "written"), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(again, CausalLanguageModel)
    made = objective("causal-language", tmp_path / "written")
    figures = made.figures(again, again.head, made.read(tmp_path / "validation"))
    assert figures["loss"] == pytest.approx(before["loss"], abs=1e-4)


def test_a_label_is_as_good_as_a_rating(tmp_path: Path) -> None:
    made = objective("classification", training_house.save(tmp_path / "model"), labels=("a", "b", "c"))
    (tmp_path / "data").write_text("text\tlabel\nw10 w11\tb\n")
    [sentence] = made.read(tmp_path / "data")
    assert (sentence.token_ids, sentence.targets) == ([1, 10, 11, 2], (0.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("classification", "rating\n1.0\n", "the first line names the columns"),
        ("classification", "rating\ttext\n1.0\n", "line 2: 1 fields, 2 are needed"),
        ("classification", "rating\ttext\nfine\tw10\n", "line 2: could not convert"),
        ("classification", "label\ttext\nugly\tw10\n", "line 2: label 'ugly' is none of bad, good"),
        ("spans", '{"context": "w10"}\n', "line 1: KeyError"),
        ("spans", '{"context": "w10 w11", "question": "w10", "answer": "w11", "start": 0}\n', "does not stand at 0"),
        ("spans", "w10\n", "line 1: JSONDecodeError"),
    ],
)
def test_a_file_that_can_not_be_read(tmp_path: Path, kind: str, text: str, reason: str) -> None:
    made = objective(kind, training_house.save(tmp_path / "model"))
    (tmp_path / "data").write_text(text)
    with pytest.raises(ValueError, match=reason):
        made.read(tmp_path / "data")


def test_masks_are_as_bert_has_them(tmp_path: Path) -> None:
    """Of the chosen words 80 % are masks, 10 % others; every chosen row is told, and no special token is chosen."""
    made = objective("masked-language", training_house.save(tmp_path / "model"), mask_ratio=0.34)
    assert isinstance(made, MaskedLanguage)
    sentences = made.read(counted(tmp_path / "data", 2000, 3))
    chance = random.Random(5)
    hidden = [(sentence, made.hide(sentence, chance)) for sentence in sentences]
    assert {len(one.rows) for _, one in hidden} == {2}
    seen = [(sentence.token_ids[row], one.token_ids[row]) for sentence, one in hidden for row in one.rows]
    assert all(0 < row < 7 for _, one in hidden for row in one.rows)
    assert sum(token == MASK for _, token in seen) / len(seen) == pytest.approx(0.8, abs=0.03)
    assert sum(before == token for before, token in seen) / len(seen) == pytest.approx(0.1, abs=0.02)
    for sentence, one in hidden:
        assert one.targets == [sentence.token_ids[row] for row in one.rows]
        assert all(
            a == b
            for row, (a, b) in enumerate(zip(sentence.token_ids, one.token_ids, strict=True))
            if row not in one.rows
        )


def test_common_words_are_chosen_less_often(tmp_path: Path) -> None:
    made = objective("masked-language", training_house.save(tmp_path / "model"), mask_ratio=0.2, common_share=0.02)
    assert isinstance(made, MaskedLanguage)
    chance = random.Random(1)
    (tmp_path / "data").write_text(
        "".join(f"w4 w{chance.randrange(5, 90)} w4 w{chance.randrange(5, 90)}\n" for _ in range(1000))
    )
    targets = [target for one in made.read(tmp_path / "data") for target in made.hide(one, chance).targets]
    assert sum(target == 4 for target in targets) / len(targets) < 0.3


def test_windows_of_a_long_passage(tmp_path: Path) -> None:
    """The answer stands in each window that holds the whole of it, and in no other."""
    made = objective("spans", training_house.save(tmp_path / "model"))
    words = [f"w{10 + i % 80}" for i in range(100)]
    context = " ".join(words)
    answer = "w60 w61 w62"
    line = {"context": context, "question": "w5 w6", "answer": answer, "start": context.index(answer)}
    (tmp_path / "data").write_text(json.dumps(line) + "\n")
    windows = made.read(tmp_path / "data")
    assert len(windows) > 2
    for window in windows:
        assert len(window.token_ids) <= 40
        told = window.token_ids[window.start : window.end + 1]
        assert told == ([60, 61, 62] if {60, 61, 62} <= set(window.token_ids) else [SPECIAL["[CLS]"]])


def test_overlap_of_answers() -> None:
    assert overlap("the red house", "Red house!") == 1.0
    assert overlap("red", "red house") == pytest.approx(2 / 3)
    assert overlap("blue", "red house") == 0.0
