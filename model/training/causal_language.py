"""Causal language modelling: each token from those before it (Radford et al., 2018, §3.1)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.decoder import CausalLanguageModel
from model.metadata import AttentionMetadata
from model.tokenizer import Tokenizer
from model.training.batches import in_order
from model.training.objective import Trainable


@dataclass(frozen=True, slots=True)
class CausalOptions:
    """A line of more tokens is cut."""

    max_input_tokens: int


@dataclass(frozen=True, slots=True)
class Line:
    """One text, between the tokens that begin and end a text where the vocabulary has them."""

    token_ids: list[int]


class CausalLanguage:
    """Reads one text a line; empty lines say nothing."""

    task = "generate"
    labels: tuple[str, ...] = ()

    def __init__(self, options: CausalOptions, tokenizer: Tokenizer, *, batch_tokens: int) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens

    def read(self, path: Path) -> list[Line]:
        first, last = (
            [] if token is None else [self._tokenizer.token_to_id(token)]
            for token in (self._tokenizer.bos_token, self._tokenizer.eos_token)
        )
        room = self._options.max_input_tokens - 1
        lines = []
        for text in path.read_text("utf-8").splitlines():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            whole = [token for token in [*first, *ids, *last] if token is not None][: room + 1]
            if ids and len(whole) > 1:
                lines.append(Line(whole))
        return lines

    def prepare(self, model: Trainable, head: nn.Module, examples: Sequence[Line]) -> None:
        """The head is the model's own, and trained already."""

    def loss(self, model: Trainable, head: nn.Module, batch: Sequence[Line], chance: random.Random) -> Tensor:
        """The mean cross-entropy of all tokens but each text's first."""
        return _losses(model, batch).mean()

    @torch.no_grad()
    def figures(self, model: Trainable, head: nn.Module, examples: Sequence[Line]) -> dict[str, float]:
        losses: list[float] = []
        for numbers in in_order(examples, self._batch_tokens):
            losses += _losses(model, [examples[number] for number in numbers]).tolist()
        return {"loss": sum(losses) / len(losses), "num_tokens": len(losses)}


def _losses(model: Trainable, batch: Sequence[Line]) -> Tensor:
    """One a token that is foretold. Shape: `[L]`."""
    assert isinstance(model, CausalLanguageModel)
    device = next(model.parameters()).device
    inputs = [token for line in batch for token in line.token_ids[:-1]]
    targets = [token for line in batch for token in line.token_ids[1:]]
    metadata = AttentionMetadata.pack(
        [len(line.token_ids) - 1 for line in batch], adapters=[1] * len(batch), device=device
    )
    logits_TV = model(torch.tensor(inputs, device=device), metadata)
    return cross_entropy(logits_TV, torch.tensor(targets, device=device), reduction="none")
