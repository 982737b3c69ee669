"""What turns hidden states into answers: pooled vectors, classes, masked tokens, spans, next tokens."""

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


class Widen(nn.Module):
    """Scores in float32, whatever the weights are in."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.float()


class Pooling(nn.Module):
    """One vector a sequence, as sentence-transformers does it. Shape: `[T, D] -> [S, D]`, float32."""

    def __init__(self, mode: Literal["mean", "cls"], *, is_normalized: bool) -> None:
        super().__init__()
        self.mode = mode
        self.is_normalized = is_normalized
        self.first_token = FirstToken()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        if self.mode == "cls":
            pooled_SD = self.first_token(x_TD, metadata).float()
        else:
            parts = x_TD.float().split(list(metadata.query_lengths))
            pooled_SD = torch.stack([part.mean(dim=0) for part in parts])
        return normalize(pooled_SD, dim=1) if self.is_normalized else pooled_SD


class SequenceClassifier(nn.Module):
    """A score a label from [CLS]: a pooler, then a linear layer (BERT, §3.2). Shape: `[T, D] -> [S, labels]`.

    The pooler ends in tanh as BERT's does, or in what a family that came later has there.
    """

    def __init__(self, width: int, num_labels: int, activation: str = "tanh") -> None:
        super().__init__()
        self.first_token = FirstToken()
        self.pooler = Linear(width, width, has_bias=True)
        self.activation = Activation(activation)
        self.classifier = Linear(width, num_labels, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        first_SD = self.first_token(x_TD, metadata)
        pooled_SD = self.activation(self.pooler(first_SD, metadata))
        return self.widen(self.classifier(pooled_SD, metadata))


class TokenClassifier(nn.Module):
    """A score a label for each token (BERT, §4, CoNLL). Shape: `[T, D] -> [T, labels]`."""

    def __init__(self, width: int, num_labels: int) -> None:
        super().__init__()
        self.classifier = Linear(width, num_labels, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.widen(self.classifier(x_TD, metadata))


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
    """For each token, how well an answer starts and ends there (BERT, §4.2). Shape: `[T, D] -> [T, 2]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start_end = Linear(width, 2, has_bias=True)
        self.widen = Widen()

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.widen(self.start_end(x_TD, metadata))


class MaskedLanguageModel(nn.Module):
    """A score a vocabulary entry for each logit row (BERT, §3.1). Shape: `[T, D] -> [L, V]`.

    The decoding matrix is the token table, and `norm` is of its width.
    """

    def __init__(self, width: int, activation: str, norm: nn.Module, tokens: Embedding) -> None:
        super().__init__()
        self.take_rows = TakeRows()
        vocabulary_size, token_width = tokens.weight.shape
        self.transform = Linear(width, token_width, has_bias=True)
        self.activation = Activation(activation)
        self.norm = norm
        self.decoder = Linear(token_width, vocabulary_size, has_bias=True)
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
