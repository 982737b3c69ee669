"""What turns hidden states into answers: pooled vectors, classes, masked tokens, spans, next tokens."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from model.embeddings import Embedding
from model.feed_forward import Activation
from model.linear import Linear
from model.metadata import AttentionMetadata


class TakeRows(nn.Module):
    """The logit rows of the batch, or every row when it names none. Shape: `[T, D] -> [L, D]`."""

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return x_TD if metadata.logit_rows_L is None else x_TD[metadata.logit_rows_L]


class FirstToken(nn.Module):
    """Each sequence's first token, [CLS] in BERT. Shape: `[T, D] -> [S, D]`."""

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        lengths_S = torch.tensor(metadata.query_lengths, device=x_TD.device)
        return x_TD[lengths_S.cumsum(0) - lengths_S]


class MeanToken(nn.Module):
    """The mean of each sequence's tokens. Shape: `[T, D] -> [S, D]`."""

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        parts = x_TD.float().split(list(metadata.query_lengths))
        return torch.stack([part.mean(dim=0) for part in parts]).to(x_TD.dtype)


class Widen(nn.Module):
    """Scores in float32, whatever the weights are in."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.float()


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


class Pooling(nn.Module):
    """One vector a sequence: its tokens pooled in one way or several, their results side by side.

    The modes have sentence-transformers' names. Shape: `[T, D] -> [S, modes * D]`, float32.
    """

    def __init__(self, *modes: PoolingMode) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        parts = x_TD.float().split(list(metadata.query_lengths))
        return torch.cat([torch.stack([_POOLS[mode](part) for part in parts]) for mode in self.modes], dim=1)


def _weighted_mean(x_TD: Tensor) -> Tensor:
    """Later tokens count more: the first once, the second twice, ..."""
    weights_T = torch.arange(1, len(x_TD) + 1, device=x_TD.device, dtype=x_TD.dtype)
    return weights_T @ x_TD / weights_T.sum()


# Of one sequence: `[T, D] -> [D]`.
_POOLS: dict[PoolingMode, Callable[[Tensor], Tensor]] = {
    "cls": lambda x_TD: x_TD[0],
    "max": lambda x_TD: x_TD.amax(dim=0),
    "mean": lambda x_TD: x_TD.mean(dim=0),
    "mean_sqrt_len_tokens": lambda x_TD: x_TD.sum(dim=0) / math.sqrt(len(x_TD)),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda x_TD: x_TD[-1],
}


class Dense(nn.Module):
    """activation(W x + b) of pooled vectors; without a name no activation. Shape: `[S, I] -> [S, O]`."""

    def __init__(self, in_width: int, out_width: int, activation: str | None, *, has_bias: bool) -> None:
        super().__init__()
        self.linear = Linear(in_width, out_width, has_bias=has_bias)
        self.activation = None if activation is None else Activation(activation)

    def forward(self, x_SD: Tensor, metadata: AttentionMetadata) -> Tensor:
        y_SD = self.linear(x_SD, metadata)
        return y_SD if self.activation is None else self.activation(y_SD)


class Normalize(nn.Module):
    """Vectors of length 1. Shape: `[S, D] -> [S, D]`."""

    def forward(self, x_SD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return normalize(x_SD, dim=1)


class SentenceVectors(nn.Module):
    """A vector a sequence: pooled, then what lies behind, one after another. Shape: `[T, D] -> [S, O]`, float32."""

    def __init__(self, pooling: Pooling, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.layers = nn.ModuleList(layers)

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_SD = self.pooling(x_TD, metadata)
        for layer in self.layers:
            x_SD = layer(x_SD, metadata)
        return x_SD


class Transform(nn.Module):
    """norm(activation(dense(x))): what ModernBERT does before each of its heads. Shape: `[L, D] -> [L, D]`."""

    def __init__(self, width: int, activation: str, norm: nn.Module, *, has_bias: bool) -> None:
        super().__init__()
        self.dense = Linear(width, width, has_bias=has_bias)
        self.activation = Activation(activation)
        self.norm = norm

    def forward(self, x_LD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.activation(self.dense(x_LD, metadata)))


class SequenceClassifier(nn.Module):
    """A score a label from [CLS]: a pooler, then a linear layer (BERT, §3.2). Shape: `[T, D] -> [S, labels]`.

    The pooler ends in tanh as BERT's does, or in what a family that came later has there; ModernBERT may read the mean
    of the tokens instead of [CLS], and normalises what the pooler gives.
    """

    def __init__(
        self,
        width: int,
        num_labels: int,
        activation: str = "tanh",
        *,
        pool: FirstToken | MeanToken | None = None,
        has_pooler_bias: bool = True,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.pool = pool or FirstToken()
        self.pooler = Linear(width, width, has_bias=has_pooler_bias)
        self.activation = Activation(activation)
        self.norm = norm
        self.classifier = Linear(width, num_labels, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        pooled_SD = self.activation(self.pooler(self.pool(x_TD, metadata), metadata))
        if self.norm is not None:
            pooled_SD = self.norm(pooled_SD)
        return self.widen(self.classifier(pooled_SD, metadata))


class TokenClassifier(nn.Module):
    """A score a label for each logit row (BERT, §4, CoNLL). Shape: `[T, D] -> [L, labels]`."""

    def __init__(self, width: int, num_labels: int, transform: Transform | None = None) -> None:
        super().__init__()
        self.take_rows = TakeRows()
        self.transform = transform
        self.classifier = Linear(width, num_labels, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_LD = self.take_rows(x_TD, metadata)
        if self.transform is not None:
            x_LD = self.transform(x_LD, metadata)
        return self.widen(self.classifier(x_LD, metadata))


class ReplacedTokenDetector(nn.Module):
    """For each token, how surely another stood there before (ELECTRA, §2). Shape: `[T, D] -> [T, 1]`."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.transform = Linear(width, width, has_bias=True)
        self.activation = Activation(activation)
        self.score = Linear(width, 1, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.widen(self.score(self.activation(self.transform(x_TD, metadata)), metadata))


class SpanExtractor(nn.Module):
    """For each logit row, how well an answer starts and ends there (BERT, §4.2). Shape: `[T, D] -> [L, 2]`."""

    def __init__(self, width: int, transform: Transform | None = None) -> None:
        super().__init__()
        self.take_rows = TakeRows()
        self.transform = transform
        self.start_end = Linear(width, 2, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_LD = self.take_rows(x_TD, metadata)
        if self.transform is not None:
            x_LD = self.transform(x_LD, metadata)
        return self.widen(self.start_end(x_LD, metadata))


class MaskedLanguageModel(nn.Module):
    """A score a vocabulary entry for each logit row (BERT, §3.1). Shape: `[T, D] -> [L, V]`.

    The decoding matrix is the token table, and `norm` is of its width.
    """

    def __init__(
        self,
        width: int,
        activation: str,
        norm: nn.Module,
        tokens: Embedding,
        *,
        has_transform_bias: bool = True,
        has_decoder_bias: bool = True,
    ) -> None:
        super().__init__()
        self.take_rows = TakeRows()
        vocabulary_size, token_width = tokens.weight.shape
        self.transform = Linear(width, token_width, has_bias=has_transform_bias)
        self.activation = Activation(activation)
        self.norm = norm
        self.decoder = Linear(token_width, vocabulary_size, has_bias=has_decoder_bias)
        self.decoder.weight = tokens.weight
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_LD = self.take_rows(x_TD, metadata)
        x_LD = self.norm(self.activation(self.transform(x_LD, metadata)))
        return self.widen(self.decoder(x_LD, metadata))


class LanguageModelHead(nn.Module):
    """A score a vocabulary entry for the token after each logit row. Shape: `[T, D] -> [L, V]`, float32."""

    def __init__(self, output: Linear) -> None:
        super().__init__()
        self.take_rows = TakeRows()
        self.output = output
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.widen(self.output(self.take_rows(x_TD, metadata), metadata))
