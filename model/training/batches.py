"""Examples cut into batches by tokens: packed, without padding."""

import random
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from model.encoder import EncoderModel
from model.metadata import AttentionMetadata
from model.training.objective import Example


def cut(examples: Sequence[Example], max_tokens: int, chance: random.Random) -> list[list[int]]:
    """The numbers of all examples, each once, in batches of at most `max_tokens`, in random order.

    Examples of one length stand together as far as they go, because equal lengths attend in one call; what is left of
    each length is mixed.
    """
    order = list(range(len(examples)))
    chance.shuffle(order)
    batches: list[list[int]] = []
    of_length: dict[int, list[int]] = defaultdict(list)
    for number in order:
        length = len(examples[number].token_ids)
        same = of_length[length]
        if same and (len(same) + 1) * length > max_tokens:
            batches.append(same)
            same = of_length[length] = []
        same.append(number)
    rest = [number for length in sorted(of_length) for number in of_length[length]]
    batches += in_order(examples, max_tokens, rest)
    chance.shuffle(batches)
    return batches


def in_order(examples: Sequence[Example], max_tokens: int, numbers: Sequence[int] | None = None) -> list[list[int]]:
    """Batches of examples as they stand, or of those that `numbers` names."""
    batches: list[list[int]] = []
    batch: list[int] = []
    num_tokens = 0
    for number in range(len(examples)) if numbers is None else numbers:
        length = len(examples[number].token_ids)
        if batch and num_tokens + length > max_tokens:
            batches.append(batch)
            batch, num_tokens = [], 0
        batch.append(number)
        num_tokens += length
    return [*batches, batch] if batch else batches


def encode(
    model: EncoderModel,
    sequences: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]] | None = None,
    *,
    logit_rows: Sequence[int] | None = None,
) -> tuple[Tensor, AttentionMetadata]:
    """Sequences through the encoder and its first adapter. Shape: hidden `[T, D]`."""
    device = next(model.parameters()).device
    ids_T = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    types_T = torch.zeros_like(ids_T)
    if type_ids is not None:
        types_T = torch.tensor([kind for kinds in type_ids for kind in kinds], device=device)
    metadata = AttentionMetadata.pack(
        [len(sequence) for sequence in sequences],
        adapters=[1] * len(sequences),
        logit_rows=logit_rows,
        device=device,
    )
    return model.encoder(ids_T, types_T, metadata), metadata
