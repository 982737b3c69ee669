"""What a way of computing the decoder costs in quality: without it a figure of speed means nothing.

480 tokens of English are put before it one by one, whatever it would have said, and what it says after each is held
against float32 on the values of the published file, computed by transformers.

    python -m tests.performance.quality [TYPE ...]

prints ours and llama.cpp's for files of these types (all: Q4_1 Q8_0 BF16).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.performance.our_step import OurStep
from tests.performance.peers.installed import OPENVINO_PRECISIONS, PUBLISHED, LlamaCpp, OpenVino, weights
from tests.performance.report import Row, table

TEXT = Path(__file__).with_name("english.txt")
NUM_TOKENS = 480
LEAST_AGREEMENT = 0.955
MOST_LOSS = 0.003
TYPES = ("Q4_1", "Q8_0", "BF16")
HEADS: Row = ("against float32", "top-1, loss a token", "regret", "is enough")


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the tokens of a text.

    agreement  how often the likeliest token is the reference's
    loss       log-probability given up by a token that the reference would draw: the Kullback-Leibler divergence
    surprise   log-probability given up by the text's own next token, negative where it gains: one draw of the above
    regret     log-probability, by the reference, given up by choosing the likeliest token here
    """

    agreement: float
    loss: float
    surprise: float
    regret: float

    @classmethod
    def of(cls, reference_TV: torch.Tensor, candidate_TV: torch.Tensor, next_ids_T: torch.Tensor) -> "Quality":
        """Logits of both and the token that follows each in the text."""
        assert reference_TV.shape == candidate_TV.shape
        reference_TV, candidate_TV = (x.double().log_softmax(1) for x in (reference_TV, candidate_TV))
        best_T, chosen_T = reference_TV.argmax(1), candidate_TV.argmax(1)

        def mean_at(logs_TV: torch.Tensor, ids_T: torch.Tensor) -> float:
            return float(logs_TV.gather(1, ids_T[:, None]).mean())

        return cls(
            agreement=float((best_T == chosen_T).double().mean()),
            loss=float((reference_TV.exp() * (reference_TV - candidate_TV)).sum(1).mean()),
            surprise=mean_at(reference_TV, next_ids_T) - mean_at(candidate_TV, next_ids_T),
            regret=mean_at(reference_TV, best_T) - mean_at(reference_TV, chosen_T),
        )

    def is_enough(self, peer: "Quality | None" = None) -> bool:
        """Whether it passes the gate, which a peer on the same file lowers to what it reaches itself."""
        least = LEAST_AGREEMENT if peer is None else min(LEAST_AGREEMENT, peer.agreement)
        most = MOST_LOSS if peer is None else max(MOST_LOSS, peer.loss)
        return self.agreement >= least and self.loss <= most

    def __str__(self) -> str:
        return f"{self.agreement:.3f}, {self.loss:.4f}"


class Gate:
    """The reference, computed once, and what is held against it."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        reference = AutoModelForCausalLM.from_pretrained(
            PUBLISHED.parent, gguf_file=PUBLISHED.name, dtype=torch.float32
        ).eval()
        self.token_ids = text_ids()
        with torch.inference_mode():
            self.reference_TV = reference(torch.tensor([self.token_ids[:-1]])).logits[0]

    def of(self, logits_LV: torch.Tensor) -> Quality:
        """Of the logits after the text's last L tokens; the very last token is only compared with."""
        assert 0 < len(logits_LV) <= NUM_TOKENS
        next_ids = torch.tensor(self.token_ids[-len(logits_LV) :])
        return Quality.of(self.reference_TV[-len(logits_LV) :], logits_LV, next_ids)

    def ours(self, step: OurStep, *, prompt_tokens: int = 1) -> Quality:
        return self.of(step.logits(self.token_ids[:-1], prompt_tokens=prompt_tokens))

    def llama_cpp(self, model: Path) -> Quality:
        return self.of(torch.from_numpy(LlamaCpp(waits="PASSIVE").logits(model, self.token_ids[:-1])))


def text_ids() -> list[int]:
    """NUM_TOKENS tokens and the one after them."""
    from model.checkpoints.registry import open_checkpoint

    ids = open_checkpoint(PUBLISHED).tokenizer().encode(TEXT.read_text("utf-8"), add_special_tokens=False).ids
    assert len(ids) > NUM_TOKENS
    return ids[: NUM_TOKENS + 1]


def rows_of(gate: Gate, kind: str, step: OurStep) -> list[Row]:
    """Ours as a stream sees it, after a prompt too, and the peers' on the same file.

    A file whose values are not the published ones has lost something before anybody computes: ours need not be better
    there than llama.cpp's. The peers themselves stand before the gate as it is.
    """
    half = NUM_TOKENS // 2
    peer = gate.llama_cpp(weights(kind))
    ours = {
        f"Janus ({step.kernel}, {step.runner.dtype})": gate.ours(step),
        f"Janus after a prompt of {half}": gate.ours(step, prompt_tokens=half),
    }
    ways = {**ours, "llama.cpp": peer}
    if kind == "Q8_0":
        for precision in OPENVINO_PRECISIONS:
            logits = OpenVino(kind, precision=precision).logits(gate.token_ids[:-1])
            ways[f"OpenVINO {precision}"] = gate.of(torch.from_numpy(logits))
    return [
        (
            f"{kind}, {name}",
            str(quality),
            f"{quality.regret:.4f}",
            "yes" if quality.is_enough(peer if name in ours else None) else "**no**",
        )
        for name, quality in ways.items()
    ]


def main(types: Sequence[str]) -> None:
    gate = Gate()
    rows = []
    for kind in types or TYPES:
        step = OurStep(
            weights(kind), max_batch=1, max_length=NUM_TOKENS + 1, dtype="bf16" if kind == "BF16" else "auto"
        )
        rows += rows_of(gate, kind, step)
    print("\n".join(table(HEADS, rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
