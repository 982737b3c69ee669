"""Our side of a comparison computes what the model computes, with one token a step."""

from pathlib import Path

import pytest
import small_models
import torch

from model.checkpoints.registry import load, open_checkpoint
from model.metadata import AttentionMetadata
from services.decoder.scheduler import Batch
from tests.performance.our_step import CHUNK_TOKENS, OurStep

IDS = [5, 9, 11, 90, 3, 3, 8, 60, 61, 62, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.save(small_models.llama(), tmp_path_factory.mktemp("llama"))


@pytest.fixture
def ours(folder: Path) -> OurStep:
    return OurStep(folder, max_batch=6, max_length=130, threads=1, dtype="float32")


@pytest.fixture
def batches(ours: OurStep, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The new tokens of each row, step by step."""
    seen: list[list[int]] = []
    execute = ours.runner.execute

    def watched(batch: Batch) -> list[int | None]:
        seen.append([row.num_new_tokens for row in batch.rows])
        return execute(batch)

    monkeypatch.setattr(ours.runner, "execute", watched)
    return seen


@pytest.mark.parametrize("prompt_tokens", [1, 4, len(IDS)])
def test_the_logits_are_those_of_the_whole_text_at_once(folder: Path, ours: OurStep, prompt_tokens: int) -> None:
    model = load(open_checkpoint(folder), device=torch.device("cpu"), dtype=torch.float32)
    with torch.inference_mode():
        metadata = AttentionMetadata.pack([len(IDS)], logit_rows=range(len(IDS)))
        expected = model(torch.tensor(IDS), metadata)
    torch.testing.assert_close(ours.logits(IDS, prompt_tokens=prompt_tokens), expected[prompt_tokens - 1 :])


def test_steps_bring_one_token_to_each_after_prompts_in_steps_of_a_bounded_size(
    ours: OurStep, batches: list[list[int]]
) -> None:
    assert ours.step_speed(6, 120, 3) > 0
    assert CHUNK_TOKENS == 512
    assert batches == [[120, 120, 120, 120, 32], [88, 120], [1] * 6, [1] * 6, [1] * 6]


def test_a_prompt_alone_is_one_step(ours: OurStep, batches: list[list[int]]) -> None:
    assert ours.prompt_speed(100) > 0
    assert batches == [[100]]


def test_more_than_the_cache_holds_is_refused(ours: OurStep) -> None:
    with pytest.raises(ValueError, match="the runner's cache has"):
        ours.step_speed(7, 120, 3)
