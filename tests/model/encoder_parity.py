"""How an encoder of ours is held against transformers' of the same checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path

import small_models
import torch
from transformers import PreTrainedModel

from model.checkpoints.registry import load, open_checkpoint
from model.metadata import AttentionMetadata

LENGTHS = (30, 9, 30, 1, 128)
# How each task's output is found in transformers', as rows of our shape.
OUTPUTS: dict[str, Callable[..., torch.Tensor]] = {
    "": lambda output: output.last_hidden_state[0],
    "SequenceClassification": lambda output: output.logits,
    "TokenClassification": lambda output: output.logits[0],
    "QuestionAnswering": lambda output: torch.stack([output.start_logits[0], output.end_logits[0]], dim=1),
    "MaskedLM": lambda output: output.logits[0],
    "PreTraining": lambda output: output.logits[0][:, None],
}


def assert_equals(
    reference: PreTrainedModel,
    folder: Path,
    num_segments: int = 1,
    *,
    lengths: Sequence[int] = LENGTHS,
    tolerance: float = 1e-4,
) -> None:
    """A packed batch of several lengths against one sentence at a time, with the types that the family knows."""
    small_models.save(reference, folder)
    assert_folder_equals(folder, reference, num_segments, lengths=lengths, tolerance=tolerance)


def assert_folder_equals(
    folder: Path,
    reference: PreTrainedModel,
    num_segments: int = 1,
    *,
    lengths: Sequence[int] = LENGTHS,
    tolerance: float = 1e-4,
) -> None:
    """The same for a checkpoint that was saved before."""
    checkpoint = open_checkpoint(folder)
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    _, _, task = checkpoint.architecture.partition("For")
    generator = torch.Generator().manual_seed(11)
    # Ids from 2 on: in the middle of a sentence, RoBERTa's reference gives padding no position.
    texts = [torch.randint(2, small_models.VOCABULARY_SIZE, (n,), generator=generator) for n in lengths]
    types = [(torch.arange(n) >= n // 2).long() % num_segments for n in lengths]
    output = model(torch.cat(texts), torch.cat(types), AttentionMetadata.pack(lengths))
    is_a_row_a_sentence = task == "SequenceClassification"
    parts = output.split([1] * len(lengths) if is_a_row_a_sentence else list(lengths))
    for ids, kinds, part in zip(texts, types, parts, strict=True):
        given = {"token_type_ids": kinds[None]} if num_segments > 1 else {}
        expected = OUTPUTS[task](reference(ids[None], **given))
        torch.testing.assert_close(part, expected, atol=tolerance, rtol=0)
