"""What every attention kernel is held to: softmax(scale q k^T + bias) v in float64, one query at a time."""

import torch
from torch import Tensor

from model.metadata import AttentionSpec


def oracle(q_THE: Tensor, k_UGE: Tensor, v_UGE: Tensor, spec: AttentionSpec, bias_HJ: Tensor | None) -> Tensor:
    """One sequence: T queries, the last of U keys."""
    num_queries, num_keys = len(q_THE), len(k_UGE)
    group = spec.num_query_heads // spec.num_key_value_heads
    mixed = torch.empty(q_THE.shape, dtype=torch.float64)
    for h in range(spec.num_query_heads):
        scores = spec.scale * q_THE[:, h].double() @ k_UGE[:, h // group].double().T
        for t in range(num_queries):
            position = num_keys - num_queries + t
            window = num_keys if spec.window is None else spec.window
            seen = range(max(position - window, 0), min(position + (0 if spec.is_causal else window) + 1, num_keys))
            scores_U = scores[t, seen]
            if bias_HJ is not None:
                scores_U = scores_U + bias_HJ[h, [bias_HJ.shape[1] // 2 + u - position for u in seen]].double()
            mixed[t, h] = scores_U.softmax(0) @ v_UGE[seen, h // group].double()
    return mixed


def random_heads(num_tokens: int, num_heads: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(num_tokens, num_heads, width, generator=torch.Generator().manual_seed(seed))
