"""What an encoder looks at: the attention weights of its layers, softmax(q k^T / sqrt(E)), a matrix a head.

No kernel has to tell its weights. It computes `weights v`, so with the identity in the place of v the weights are what
comes out, a few columns at a time, whatever the kernel and whatever is added to its scores.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.attention import Attend
from model.block import EncoderBlock
from model.disentangled import DisentangledAttend
from model.encoder import Encoder
from model.metadata import AttentionMetadata


class Inspection:
    """Looks into one encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(
        self, token_ids_T: Tensor, token_types_T: Tensor, metadata: AttentionMetadata, layers: Sequence[int]
    ) -> Iterator[Tensor]:
        """The weights of each of `layers`, in their order, for a batch of one sequence.

        Shape: `[H, T, T]`, float32; row i tells what token i looks at, and sums to 1.
        """
        inputs: dict[int, tuple[Any, ...]] = {}
        hooks = []
        for layer in set(layers):

            def keep(_: nn.Module, given: tuple[Any, ...], layer: int = layer) -> None:
                inputs[layer] = given

            hooks.append(self._attend(layer).register_forward_pre_hook(keep))
        try:
            self._encoder(token_ids_T, token_types_T, metadata)
        finally:
            for hook in hooks:
                hook.remove()
        for layer in layers:
            yield _weights(self._attend(layer), *inputs[layer])

    def _attend(self, layer: int) -> Attend | DisentangledAttend:
        return cast(EncoderBlock, self._encoder.blocks[layer]).attention.attend


def _weights(attend: Attend | DisentangledAttend, row_TX: Tensor, *others: Any) -> Tensor:
    spec = attend.spec
    num_tokens = len(row_TX)
    looking_TX = row_TX[:, : sum(spec.row_widths[:2])]
    columns = []
    for identity_TE in torch.eye(num_tokens, dtype=row_TX.dtype, device=row_TX.device).split(spec.head_width, dim=1):
        values_TE = nn.functional.pad(identity_TE, (0, spec.head_width - identity_TE.shape[1]))
        values_TX = values_TE.repeat(1, spec.num_key_value_heads)
        mixed_TX = attend.forward(torch.cat((looking_TX, values_TX), dim=1), *others)
        columns.append(mixed_TX.unflatten(1, (spec.num_query_heads, spec.head_width)))
    return torch.cat(columns, dim=2)[:, :, :num_tokens].transpose(0, 1).float()
