"""Adapters of each task over one encoder: served under their names, alone as in a batch, refused in one line."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training_house
from encoder_house import runner, worker

from janus.v1 import encoder_pb2, encoder_pb2_grpc, models_pb2, models_pb2_grpc
from model.adapters import Adapter, blank, linears_of
from model.checkpoints.registry import load, open_checkpoint
from model.encoder import EncoderModel
from model.heads import MaskedLanguageModel
from model.metadata import AttentionMetadata
from services.common.settings import ConfigurationError

TASKS = {"mood": "classify", "words": "fill-mask", "answers": "question-answering"}
TEXT = "w10 w11 [MASK] w12"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return training_house.save(tmp_path / "base")


@pytest.fixture
def adapters(base: Path, tmp_path: Path) -> Path:
    """One of each task, with random factors of different rank."""
    model = fresh(base)
    for seed, (name, task) in enumerate(TASKS.items(), start=1):
        labels = ["bad", "good"] if task == "classify" else []
        made = blank(name, labels, model, rank=1 + seed, seed=seed, task=task)
        generator = torch.Generator().manual_seed(seed)
        up = {path: 0.2 * torch.randn(tensor.shape, generator=generator) for path, tensor in made.up.items()}
        replace(made, up=up).save(tmp_path / "adapters" / name, dtype=torch.float32)
    return tmp_path / "adapters"


def fresh(folder: Path) -> EncoderModel:
    model = load(open_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, EncoderModel)
    return model


@torch.inference_mode()
def merged_scores(base: Path, adapter: Adapter) -> torch.Tensor:
    """What a model with the adapter's factors in its weights expects in the place of TEXT's mask. Shape: `[V]`."""
    merged = fresh(base)
    for path, module in linears_of(merged.encoder).items():
        module.weight += adapter.up[path] @ adapter.down[path]
    head = training_house.masked_head(merged, adapter.head)
    ids = torch.tensor([1, 10, 11, 3, 12, 2])
    metadata = AttentionMetadata.pack([6], logit_rows=[3])
    return head(merged.encoder(ids, torch.zeros_like(ids), metadata), metadata)[0].softmax(dim=0)


async def test_each_is_served_under_its_name(base: Path, adapters: Path) -> None:
    async with worker(models=f"base={base}", adapters_dir=adapters) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        served = (await stub.ListModels(models_pb2.ListModelsRequest())).models
        assert {model.id: (model.parent, list(model.tasks)) for model in served if model.parent} == {
            name: ("base", [task]) for name, task in TASKS.items()
        }
        assert {model.id: list(model.labels) for model in served if model.labels} == {"mood": ["bad", "good"]}


async def test_masks_are_filled_as_merged_weights_fill_them(base: Path, adapters: Path) -> None:
    scores = merged_scores(base, Adapter.load(adapters / "words"))
    async with worker(models=f"base={base}", adapters_dir=adapters) as channel:
        answer = await encoder_pb2_grpc.EncoderServiceStub(channel).FillMask(encoder_pb2.FillMaskRequest(inputs=[TEXT]))
    candidates = answer.results[0].masks[0].candidates
    assert answer.model == "words"
    assert [one.token for one in candidates] == scores.topk(5).indices.tolist()
    assert [one.score for one in candidates] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-5)


async def test_tasks_share_a_batch_and_answer_as_alone(base: Path, adapters: Path) -> None:
    async with worker(models=f"base={base}", adapters_dir=adapters) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        asked = encoder_pb2.QuestionInContext(question="w20", context="w30 w31 w32 w33")
        calls = [
            lambda: stub.ClassifyText(encoder_pb2.ClassifyTextRequest(inputs=["w10 w11 w12"])),
            lambda: stub.FillMask(encoder_pb2.FillMaskRequest(inputs=[TEXT])),
            lambda: stub.AnswerQuestion(encoder_pb2.AnswerQuestionRequest(inputs=[asked])),
        ]
        alone = [await call() for call in calls]
        many = encoder_pb2.ClassifyTextRequest(inputs=["w10 " * 100] * 30)
        _, labels, filled, answered = await asyncio.gather(stub.ClassifyText(many), *(call() for call in calls))
    told = [one.score for one in labels.results[0].labels]
    assert told == pytest.approx([one.score for one in alone[0].results[0].labels], abs=1e-5)
    told = [one.score for one in filled.results[0].masks[0].candidates]
    assert told == pytest.approx([one.score for one in alone[1].results[0].masks[0].candidates], abs=1e-5)
    [one, other] = [answer.results[0].answers[0] for answer in (answered, alone[2])]
    assert (one.answer, one.start, one.end) == (other.answer, other.start, other.end)
    assert one.score == pytest.approx(other.score, abs=1e-5)


async def test_a_folder_that_names_no_task_classifies(base: Path, adapters: Path) -> None:
    description = adapters / "mood/adapter.json"
    told = json.loads(description.read_text())
    del told["task"]
    description.write_text(json.dumps(told))
    made = runner(models=f"base={base}", adapters_dir=adapters)
    assert {model.model_id: list(model.heads) for model in made.models}["mood"] == ["classify"]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (
            "mood",
            {"task": "dance"},
            "adapter 'mood' is for the task 'dance'; adapters are for classify, fill-mask, ques",
        ),
        (
            "mood",
            {"task": "fill-mask"},
            "adapter 'mood' has a head of another shape: classifier.bias, classifier.weight",
        ),
        ("mood", {"labels": ["bad", "good", "ugly"]}, "adapter 'mood' has a head of another shape: classifier.bias"),
        ("answers", {"task": "classify", "labels": ["a"]}, "adapter 'answers' has a head of another shape"),
        ("mood", {"labels": None}, "mood: not an adapter"),
        ("mood", {"task": ["classify"]}, "mood: not an adapter"),
    ],
)
def test_a_description_that_does_not_fit(
    base: Path, adapters: Path, name: str, changes: dict[str, object], reason: str
) -> None:
    description = adapters / name / "adapter.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), **changes}))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        runner(models=f"base={base}", adapters_dir=adapters)
    assert "\n" not in str(caught.value)


def test_no_mask_token_no_masks(base: Path, adapters: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "[MASK]"]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigurationError, match="adapter 'words' fills masks, but the tokenizer has no mask token"):
        runner(models=f"base={base}", adapters_dir=adapters)


def test_the_token_table_is_no_adapters_to_bring(base: Path, adapters: Path) -> None:
    adapter = Adapter.load(adapters / "words")
    own = {**adapter.head, "decoder.weight": fresh(base).encoder.embeddings.tokens.weight.clone()}
    replace(adapter, head=own).save(adapters / "words", dtype=torch.float32)
    with pytest.raises(ConfigurationError, match=r"adapter 'words' has a head of another shape: decoder\.weight"):
        runner(models=f"base={base}", adapters_dir=adapters)


def test_vectors_stay_as_they_were(base: Path, adapters: Path) -> None:
    """The same table, the same body: an adapter's head shares the one and changes neither."""
    made = runner(models=f"base={base}", adapters_dir=adapters)
    plain, adapted = fresh(base), made._model
    heads = {name: head.module for model in made.models for name, head in model.heads.items()}
    assert isinstance(heads["fill-mask"], MaskedLanguageModel)
    assert heads["fill-mask"].decoder.weight is adapted.encoder.embeddings.tokens.weight
    for name, parameter in plain.encoder.named_parameters():
        assert torch.equal(parameter, adapted.encoder.get_parameter(name)), name
