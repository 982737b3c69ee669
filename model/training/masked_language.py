"""Masked language modelling: words are hidden and told from what stands around them (BERT, §3.1).

Whole words are chosen, content words more often than those that every sentence has (Mikolov et al., 2013, §2.3). Of the
chosen, 80 % become the mask token, 10 % another token, and 10 % stay as they are.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from model.encoder import EncoderModel
from model.heads import MaskedLanguageModel
from model.tokenizer import Tokenizer
from model.training.batches import encode, in_order
from model.training.objective import Trainable

_MASKED, _OTHER = 0.8, 0.1
# How many sentences the head's first weights are computed from.
_NUM_FITTED = 8_000
# gelu(x) is all but x up here, and the norm behind it takes the shift away again.
_SHIFT = 4.0


@dataclass(frozen=True, slots=True)
class MaskingOptions:
    """`mask_ratio` of a sentence's words are chosen, at least one.

    A word of which the data has a share above `common_share` is chosen less often, by the root of the ratio. What
    stands in a sentence already is made unlikely to stand there again, with `repeat_weight`. `cloze` is a table of
    sentences with a mask and the words that would do, for two more figures.
    """

    max_input_tokens: int
    mask_ratio: float
    common_share: float = 1.0
    repeat_weight: float = 0.0
    cloze: Path | None = None


@dataclass(frozen=True, slots=True)
class MaskableSentence:
    """A sentence; `words` are the rows of each of its words."""

    token_ids: list[int]
    words: list[list[int]]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A sentence as the model sees it, and what stood in the rows that it has to tell."""

    token_ids: list[int]
    rows: list[int]
    targets: list[int]


class MaskedLanguage:
    """Reads one text a line; lines of one word say nothing."""

    task = "fill-mask"
    labels: tuple[str, ...] = ()

    def __init__(self, options: MaskingOptions, tokenizer: Tokenizer, *, batch_tokens: int) -> None:
        mask = tokenizer.token_to_id(tokenizer.mask_token or "")
        if mask is None:
            raise ValueError("the tokenizer has no mask token: masked language modelling needs one")
        self._mask = mask
        self._options = options
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._counts: Counter[int] = Counter()
        self._cloze = [] if options.cloze is None else read_cloze(options.cloze)

    def read(self, path: Path) -> list[MaskableSentence]:
        sentences = []
        for text in path.read_text("utf-8").splitlines():
            encoding = self._tokenizer.encode_within(self._options.max_input_tokens, text)
            ids, words = encoding.ids, _words(encoding.word_numbers)
            if len(words) > 1:
                sentences.append(MaskableSentence(ids, words))
                self._counts.update(ids)
        return sentences

    @torch.no_grad()
    def prepare(self, model: Trainable, head: nn.Module, examples: Sequence[MaskableSentence]) -> None:
        """The bias says how often each token is met, and the transform what a ridge regression finds: from the state
        of a hidden token to its row in the token table. Mutates: `head`.
        """
        assert isinstance(model, EncoderModel)
        assert isinstance(head, MaskedLanguageModel)
        assert head.decoder.bias is not None
        assert head.transform.bias is not None
        total = self._counts.total()
        size = len(head.decoder.bias)
        shares = torch.tensor([(self._counts[token] + 0.1) / (total + 0.1 * size) for token in range(size)])
        head.decoder.bias.copy_(shares.log() - shares.log().mean())
        states, rows = [], []
        chance = random.Random(0)
        some = [self.hide(one, chance) for one in chance.sample(list(examples), min(_NUM_FITTED, len(examples)))]
        table_VD = head.decoder.weight - head.decoder.weight.mean(dim=0)
        for numbers in in_order(some, self._batch_tokens):
            batch = [some[number] for number in numbers]
            hidden_TD, _ = encode(model, [one.token_ids for one in batch])
            logit_rows, targets = _targets(batch)
            states.append(hidden_TD[logit_rows].float())
            rows.append(table_VD[targets])
        x_LD, y_LD = torch.cat(states), torch.cat(rows)
        center_D = x_LD.mean(dim=0)
        x_LD = x_LD - center_D
        square_DD = x_LD.T @ x_LD
        square_DD += torch.eye(len(square_DD), device=square_DD.device) * square_DD.diagonal().mean() * 0.1
        weight_DO = torch.linalg.solve(square_DD, x_LD.T @ y_LD)
        scale = 1 / (x_LD @ weight_DO).std()
        head.transform.weight.copy_((weight_DO * scale).T)
        head.transform.bias.copy_(-(center_D @ weight_DO) * scale + _SHIFT)

    def loss(
        self, model: Trainable, head: nn.Module, batch: Sequence[MaskableSentence], chance: random.Random
    ) -> Tensor:
        """The mean cross-entropy of the tokens that were chosen, and what repeating a token costs."""
        hidden = [self.hide(sentence, chance) for sentence in batch]
        scores_LV, targets_L = self._scores(model, head, hidden)
        loss = cross_entropy(scores_LV, targets_L)
        if self._options.repeat_weight:
            loss = loss + self._options.repeat_weight * repetition(scores_LV, hidden)
        return loss

    @torch.no_grad()
    def figures(self, model: Trainable, head: nn.Module, examples: Sequence[MaskableSentence]) -> dict[str, float]:
        """Loss and share of tokens told, of the same masks each time; of the cloze sentences, how often a word that
        would do is the model's first, or among its first five.
        """
        chance = random.Random(0)
        losses: list[float] = []
        num_right = 0
        hidden = [self.hide(sentence, chance) for sentence in examples]
        for numbers in in_order(hidden, self._batch_tokens):
            scores_LV, targets_L = self._scores(model, head, [hidden[number] for number in numbers])
            losses += cross_entropy(scores_LV, targets_L, reduction="none").tolist()
            num_right += int((scores_LV.argmax(dim=1) == targets_L).sum())
        figures = {"loss": sum(losses) / len(losses), "accuracy": num_right / len(losses), "num_tokens": len(losses)}
        if self._cloze:
            ranks = [_rank(words, self.fill(model, head, text, 5)) for text, words in self._cloze]
            figures["cloze_first"] = sum(rank == 0 for rank in ranks) / len(ranks)
            figures["cloze_five"] = sum(rank < 5 for rank in ranks) / len(ranks)
        return figures

    @torch.no_grad()
    def fill(self, model: Trainable, head: nn.Module, text: str, count: int) -> list[str]:
        """The tokens that the model expects in the place of a text's mask, best first."""
        ids = self._tokenizer.encode(text).ids
        row = ids.index(self._mask)
        scores_LV, _ = self._scores(model, head, [Hidden(ids, [row], [self._mask])])
        return [self._tokenizer.id_to_token(token) or "" for token in scores_LV[0].topk(count).indices.tolist()]

    def _scores(self, model: Trainable, head: nn.Module, batch: Sequence[Hidden]) -> tuple[Tensor, Tensor]:
        """Shape: scores `[L, V]`, targets `[L]`."""
        assert isinstance(model, EncoderModel)
        logit_rows, targets = _targets(batch)
        hidden_TD, metadata = encode(model, [one.token_ids for one in batch], logit_rows=logit_rows)
        scores_LV = head(hidden_TD, metadata)
        return scores_LV, torch.tensor(targets, device=scores_LV.device)

    def hide(self, sentence: MaskableSentence, chance: random.Random) -> Hidden:
        """Chooses words and hides them."""
        count = max(1, round(self._options.mask_ratio * len(sentence.words)))
        # The smallest of so many waiting times: a draw without putting back, each word with its weight.
        waits = [
            (chance.expovariate(self._weight(sentence, word)), rows) for rows in sentence.words for word in [rows[0]]
        ]
        ids, rows, targets = list(sentence.token_ids), [], []
        for _, chosen in sorted(waits)[:count]:
            kind = chance.random()
            for row in chosen:
                rows.append(row)
                targets.append(ids[row])
                if kind < _MASKED:
                    ids[row] = self._mask
                elif kind < _MASKED + _OTHER:
                    ids[row] = chance.randrange(self._tokenizer.vocabulary_size)
        return Hidden(ids, rows, targets)

    def _weight(self, sentence: MaskableSentence, row: int) -> float:
        share = self._counts[sentence.token_ids[row]] / max(1, self._counts.total())
        return min(1.0, math.sqrt(self._options.common_share / share)) if share else 1.0


def read_cloze(path: Path) -> list[tuple[str, frozenset[str]]]:
    """Sentences with a mask and the words that would do, with a tab between them and blanks between the words.

    Raises: ValueError for a line that is not so.
    """
    sentences = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        text, tab, words = line.partition("\t")
        if not tab or not words.split() or text.count("[MASK]") != 1:
            raise ValueError(f"{path}, line {number}: not a sentence with one [MASK], a tab and words")
        sentences.append((text, frozenset(words.split())))
    return sentences


def repetition(scores_LV: Tensor, batch: Sequence[Hidden]) -> Tensor:
    """The unlikelihood (Welleck et al., 2019) of each sentence's own tokens in the rows where others stood, a row."""
    rows: list[int] = []
    tokens: list[int] = []
    num_rows = 0
    for one in batch:
        for target in one.targets:
            others = sorted({*one.token_ids, *one.targets} - {target})
            rows += [num_rows] * len(others)
            tokens += others
            num_rows += 1
    shares_N = (scores_LV[rows, tokens] - scores_LV.logsumexp(dim=1)[rows]).exp()
    return -torch.log1p(-shares_N.clamp(max=0.999)).sum() / num_rows


def _rank(words: frozenset[str], told: Sequence[str]) -> int:
    return next((place for place, word in enumerate(told) if word in words), len(told))


def _words(numbers: Sequence[int | None]) -> list[list[int]]:
    """The rows of each word; special tokens are of none."""
    words: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        if number is not None:
            words.setdefault(number, []).append(row)
    return list(words.values())


def _targets(batch: Sequence[Hidden]) -> tuple[list[int], list[int]]:
    """Rows of the packed batch, and the tokens that stood there."""
    rows, start = [], 0
    for one in batch:
        rows += [start + row for row in one.rows]
        start += len(one.token_ids)
    return rows, [target for one in batch for target in one.targets]
