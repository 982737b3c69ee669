"""The loop: AdamW (Loshchilov and Hutter, 2017), a linear warm-up and decay, clipped gradients, a fixed seed."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from model.adapters import Adapter, attach, blank, detach
from model.encoder import EncoderModel
from model.metadata import AttentionMetadata
from model.training.recipe import Recipe
from model.training.sentiment_data import RatedSentence, batches


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of sentences whose sign was told, overall and by source."""

    overall: float
    by_source: dict[str, float]
    num_sentences: int


def train_classifier(
    model: EncoderModel, recipe: Recipe, training: Sequence[RatedSentence]
) -> tuple[Adapter, nn.Module, list[float]]:
    """Trains a new adapter and head over a frozen encoder.

    Mutates: `model`, which keeps the trained factors. Returns the adapter, its head and the loss of each step.
    """
    torch.manual_seed(recipe.seed)
    order = random.Random(recipe.seed)
    (head,) = attach(model, [blank(recipe.name, recipe.labels, model, rank=recipe.rank, seed=recipe.seed)])
    trained = [p for name, p in model.named_parameters() if ".adapters." in name] + list(head.parameters())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = [b for _ in range(recipe.num_epochs) for b in batches(training, recipe.batch_tokens, order)]
    num_warmup = max(1, round(len(schedule) * recipe.warmup_ratio))

    def rate(step: int) -> float:
        return min((step + 1) / num_warmup, (len(schedule) - step) / max(1, len(schedule) - num_warmup))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for batch in track(schedule, description=f"Training {recipe.name}"):
        loss = classification_loss(scores(model, head, batch, dropout_ratio=recipe.dropout), batch, recipe.sharpness)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return detach(recipe.name, recipe.labels, model, head), head, losses


def scores(
    model: EncoderModel, head: nn.Module, batch: Sequence[RatedSentence], *, dropout_ratio: float = 0.0
) -> Tensor:
    """A score a label for each sentence, through the adapter. Shape: `[S, labels]`."""
    ids_T = torch.tensor([token for sentence in batch for token in sentence.token_ids])
    lengths = [len(sentence.token_ids) for sentence in batch]
    metadata = AttentionMetadata.pack(lengths, adapters=[1] * len(batch))
    hidden_TD = model.encoder(ids_T, torch.zeros_like(ids_T), metadata)
    return head(dropout(hidden_TD, dropout_ratio, training=dropout_ratio > 0), metadata)


def classification_loss(scores_SC: Tensor, batch: Sequence[RatedSentence], sharpness: float) -> Tensor:
    """Cross-entropy against what the readers' mean rating says: near 0 asks for doubt, far from it for certainty."""
    positive_S = torch.sigmoid(sharpness * torch.tensor([sentence.rating for sentence in batch]))
    return cross_entropy(scores_SC, torch.stack([1 - positive_S, positive_S], dim=1))


@torch.no_grad()
def accuracy(
    model: EncoderModel, head: nn.Module, sentences: Sequence[RatedSentence], *, batch_tokens: int
) -> Accuracy:
    """How often the better label has the rating's sign; sentences rated exactly 0 have none and are left out."""
    signed = [sentence for sentence in sentences if sentence.rating != 0]
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in batches(signed, batch_tokens, random.Random(0)):
        told = scores(model, head, batch).argmax(dim=1).tolist()
        for sentence, label in zip(batch, told, strict=True):
            right[sentence.source].append((sentence.rating > 0) == bool(label))
    everything = [hit for hits in right.values() for hit in hits]
    return Accuracy(
        overall=sum(everything) / len(everything),
        by_source={source: sum(hits) / len(hits) for source, hits in sorted(right.items())},
        num_sentences=len(everything),
    )
