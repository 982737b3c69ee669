"""The two blocks of the paper's figure 1: sublayers, each with a residual connection and a norm.

The paper normalises after the sum (post-norm, as BERT does); GPT-2, Llama and ModernBERT before the sublayer
(pre-norm).
"""

from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.convolution import Convolution
from model.disentangled import DisentangledAttention
from model.feed_forward import Activation, FeedForward, GatedFeedForward
from model.kv_cache import LayerCache
from model.metadata import AttentionMetadata, Memory


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), norm(x + feed_forward(x)). Shape: `[T, D] -> [T, D]`."""

    def __init__(
        self,
        attention: MultiHeadAttention | DisentangledAttention,
        attention_norm: nn.Module,
        feed_forward: FeedForward | GatedFeedForward,
        feed_forward_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_TD = self.attention_norm(x_TD + self.attention(x_TD, metadata))
        return self.feed_forward_norm(x_TD + self.feed_forward(x_TD, metadata))


class ConvolvedEncoderBlock(EncoderBlock):
    """norm(block(x) + activation(convolution(x))): DeBERTa-v2's first. Shape: `[T, D] -> [T, D]`."""

    def __init__(
        self,
        attention: MultiHeadAttention | DisentangledAttention,
        attention_norm: nn.Module,
        feed_forward: FeedForward | GatedFeedForward,
        feed_forward_norm: nn.Module,
        *,
        convolution: Convolution,
        convolution_activation: Activation,
        convolution_norm: nn.Module,
    ) -> None:
        super().__init__(attention, attention_norm, feed_forward, feed_forward_norm)
        self.convolution = convolution
        self.convolution_activation = convolution_activation
        self.convolution_norm = convolution_norm

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        convolved_TD = self.convolution_activation(self.convolution(x_TD, metadata))
        return self.convolution_norm(super().forward(x_TD, metadata) + convolved_TD)


class PreNormEncoderBlock(EncoderBlock):
    """x + attention(norm(x)), then x + feed_forward(norm(x)). Shape: `[T, D] -> [T, D]`."""

    def forward(self, x_TD: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), metadata)
        return x_TD + self.feed_forward(self.feed_forward_norm(x_TD), metadata)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + cross_attention(norm(x)) where there is one, then x + feed_forward(norm(x)).

    Shape: `[T, D] -> [T, D]`. Mutates: `cache`.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        attention_norm: nn.Module,
        feed_forward: FeedForward | GatedFeedForward,
        feed_forward_norm: nn.Module,
        *,
        cross_attention: MultiHeadAttention | None = None,
        cross_attention_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.cross_attention = cross_attention
        self.cross_attention_norm = cross_attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm

    def forward(
        self,
        x_TD: Tensor,
        metadata: AttentionMetadata,
        cache: LayerCache | None = None,
        memory: Memory | None = None,
        memory_cache: LayerCache | None = None,
    ) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), metadata, cache)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            x_TD = x_TD + self.cross_attention(self.cross_attention_norm(x_TD), metadata, memory_cache, memory)
        return x_TD + self.feed_forward(self.feed_forward_norm(x_TD), metadata)
