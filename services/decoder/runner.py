"""A batch to tensors and back: the only file of this worker that knows torch and the model.

It loads the checkpoint, owns the cache's tensors, lays a batch out for the model and draws the tokens.
"""

import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

import torch

from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.device import resolve_device
from model.errors import CheckpointError, DeviceError, ModelError
from model.families.config import require_count, require_number
from model.metadata import AttentionMetadata
from model.sampling import Sampler, SamplingParams
from model.tokenizer import IncrementalDetokenizer
from services.common.memory import available_bytes
from services.common.settings import ConfigurationError, DecoderSettings, setting_of
from services.decoder.block_manager import BlockManager
from services.decoder.scheduler import Batch
from services.decoder.sequence import Limits, Sequence

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Runner:
    """A loaded decoder.

    Raises: ConfigurationError, with the setting at fault, for a checkpoint or a device that can't be used.
    """

    def __init__(self, settings: DecoderSettings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        started = time.perf_counter()
        try:
            self._device = resolve_device(settings.device)
            checkpoint = open_checkpoint(settings.model)
            self.tokenizer = checkpoint.tokenizer()
            model = load(checkpoint, device=self._device, dtype=_dtype(settings.dtype, self._device))
            self.digest = checkpoint.digest
            self.generation_config = _named(checkpoint.generation_config)
            self.stop_ids = _stop_ids(checkpoint.generation_config, checkpoint.config)
        except DeviceError as error:
            raise ConfigurationError(f"{setting_of(settings, 'device')}: {error}") from error
        except ModelError as error:
            raise ConfigurationError(f"{setting_of(settings, 'model')}: {error}") from error
        if not isinstance(model, CausalLanguageModel):
            what = f"{settings.model} is a {checkpoint.architecture}, not a causal language model"
            raise ConfigurationError(f"{setting_of(settings, 'model')}: {what}")
        self._model = model
        self._sampler = Sampler()
        self.chat_template = checkpoint.chat_template
        self.bos_token, self.eos_token = self.tokenizer.bos_token, self.tokenizer.eos_token
        self.max_context_tokens: int = model.config.max_positions
        self.vocabulary_size: int = model.config.vocabulary_size
        self.block_size = settings.block_size
        self.num_blocks = _num_blocks(settings, model, self._device)
        try:
            self._cache = model.decoder.new_cache(self.num_blocks, self.block_size)
        except RuntimeError as error:  # torch has no narrower one for a CPU that is out of memory
            what = f"no memory for a KV cache of {self.num_blocks * self.block_size} tokens on {self._device}"
            raise ConfigurationError(f"{_cache_setting(settings)}: {what}") from error
        self.load_seconds = time.perf_counter() - started
        self.warm_up_seconds = self._warm_up()

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def dtype(self) -> str:
        return str(next(self._model.parameters()).dtype).removeprefix("torch.")

    @property
    def kernel(self) -> str:
        return str(self._model.decoder.kernel_name)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def new_detokenizer(self) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.tokenizer)

    def sampling_params(
        self,
        *,
        temperature: float,
        top_p: float,
        top_k: int,
        min_p: float,
        seed: int,
        min_tokens: int,
        stop_ids: Items[int],
    ) -> SamplingParams:
        """What a sequence carries, opaque to all but this file."""
        return SamplingParams(
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            min_tokens=min_tokens,
            stop_ids=tuple(stop_ids),
        )

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[int | None]:
        """The token drawn for each row that caught up, None for the others. Mutates: the cache's tensors."""
        token_ids, slots, logit_rows = [], [], []
        for row in batch.rows:
            begin = row.sequence.num_computed_tokens
            end = begin + row.num_new_tokens
            token_ids += row.sequence.token_ids[begin:end]
            slots += self._slots(row.sequence.block_ids, begin, end)
            if row.is_caught_up:
                logit_rows.append(len(token_ids) - 1)
        key_lengths = [row.sequence.num_computed_tokens + row.num_new_tokens for row in batch.rows]
        metadata = AttentionMetadata.pack(
            [row.num_new_tokens for row in batch.rows],
            key_lengths=key_lengths,
            slot_mapping=slots,
            block_table=[
                row.sequence.block_ids[: -(-length // self.block_size)]
                for row, length in zip(batch.rows, key_lengths, strict=True)
            ],
            logit_rows=logit_rows,
            device=self._device,
        )
        logits_LV = self._model(torch.tensor(token_ids, device=self._device), metadata, self._cache)
        drawn = iter(self._draw(logits_LV, [row.sequence for row in batch.rows if row.is_caught_up]))
        return [next(drawn) if row.is_caught_up else None for row in batch.rows]

    def _draw(self, logits_LV: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        if not sequences:
            return []
        return self._sampler(logits_LV, [s.params for s in sequences], [s.num_output_tokens for s in sequences])

    def _slots(self, block_ids: Items[int], begin: int, end: int) -> list[int]:
        size = self.block_size
        return [block_ids[i // size] * size + i % size for i in range(begin, end)]

    def _warm_up(self) -> float:
        """A prompt and a next token, so that the first request does not pay for first calls."""
        started = time.perf_counter()
        params = self.sampling_params(temperature=0, top_p=1, top_k=0, min_p=0, seed=0, min_tokens=0, stop_ids=())
        sequence = Sequence([0] * 8, 8, Limits(max_tokens=1), params)
        blocks = BlockManager(self.num_blocks, self.block_size)
        if blocks.allocate(sequence):
            for num_new_tokens in (7, 1):
                self.execute(Batch.of(sequence, num_new_tokens))
                sequence.num_computed_tokens += num_new_tokens
        return time.perf_counter() - started


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: float32 on a CPU, where bf16 would round a quantised file again; bf16 on CUDA, which is made for it."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES.get(name, automatic)


def _num_blocks(settings: DecoderSettings, model: CausalLanguageModel, device: torch.device) -> int:
    """As many as may be, once and for all: what a cache is promised must be there when it fills."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    most = int(available * settings.cache_memory_ratio)
    token_bytes = model.decoder.cache_bytes_per_token()
    tokens = settings.num_cache_tokens or min(settings.cache_bytes, most) // token_bytes
    if tokens * token_bytes > most:
        what = f"a KV cache of {tokens} tokens takes {tokens * token_bytes} bytes, more than {most} of {available} left"
        raise ConfigurationError(f"{_cache_setting(settings)}: {what}")
    if tokens < settings.block_size:
        what = f"{tokens} tokens of KV cache are less than one block of {settings.block_size}"
        raise ConfigurationError(f"{_cache_setting(settings)}: {what}")
    return tokens // settings.block_size


def _cache_setting(settings: DecoderSettings) -> str:
    """The setting that the cache's size came from."""
    return setting_of(settings, "num_cache_tokens" if settings.num_cache_tokens else "cache_bytes")


def _named(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What it names; null names nothing. Raises: CheckpointError for a way to draw tokens that is none."""
    named = {key: value for key, value in generation_config.items() if value is not None}
    if "temperature" in named:
        require_number(named, "temperature", may_be_zero=True, most=2)
    if "top_p" in named:
        require_number(named, "top_p", most=1)
    if "top_k" in named:
        require_count(named, "top_k", least=0)
    return named


def _stop_ids(*configs: Mapping[str, Any]) -> frozenset[int]:
    """The checkpoint's end tokens, from the first config that names any. Raises: CheckpointError for other things."""
    for config in configs:
        named = config.get("eos_token_id")
        if named is not None and named != []:
            listed = named if isinstance(named, list) else [named]
            if not all(type(token) is int and token >= 0 for token in listed):
                raise CheckpointError(f"the checkpoint's eos_token_id is {named!r}, not a token or a list of tokens")
            return frozenset(listed)
    return frozenset()
