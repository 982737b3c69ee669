"""A batch to tensors and back: the only file of this worker that knows torch and the model.

It loads the checkpoint, owns the cache's tensors, lays a batch out for the model and draws the tokens.
"""

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import torch

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.packing import Packing
from model.checkpoints.registry import load, open_checkpoint
from model.decoder import CausalLanguageModel
from model.device import resolve_device
from model.errors import CannotLower, CheckpointError, DeviceError, ModelError, NativeLibraryError
from model.families.config import require_count, require_number
from model.kernels.native.library import NativeLibrary, ThreadPlan, native_library
from model.kernels.native.sampler import NativeSampler
from model.program.native import NativeStep
from model.program.step import EagerStep, Step, StepProgram
from model.sampling import Draw, SampledRow, Sampler, SamplingParams, token_mask
from model.tokenizer import IncrementalDetokenizer
from services.common.cores import step_cores
from services.common.logging import get_logger
from services.common.memory import available_bytes
from services.common.settings import ConfigurationError, DecoderSettings, setting_of
from services.decoder.block_manager import BlockManager
from services.decoder.scheduler import Batch
from services.decoder.sequence import Limits, Sequence

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
_PACKINGS: dict[str, Packing] = {"auto": "as_stored", "float32": "float32", "bf16": "bf16", "int8": "int8"}
_log = get_logger(__name__)


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
            library = _library(settings, self._device)
            model, self.dtype = _loaded(checkpoint, settings, self._device, is_packed=library is not None)
            self.digest = checkpoint.digest
            self.generation_config = _named(checkpoint.generation_config)
            self.stop_ids = _stop_ids(checkpoint.generation_config, checkpoint.config)
        except DeviceError as error:
            raise ConfigurationError(f"{setting_of(settings, 'device')}: {error}") from error
        except NativeLibraryError as error:
            raise ConfigurationError(f"{setting_of(settings, 'kernel')}: {error}") from error
        except ModelError as error:
            raise ConfigurationError(f"{setting_of(settings, 'model')}: {error}") from error
        self._program = _program(model, library, settings, self._device)
        is_native = isinstance(self._program, NativeStep)
        self._sampler = NativeSampler(library, model.config.vocabulary_size) if library and is_native else Sampler()
        self.chat_template = checkpoint.chat_template
        self.bos_token, self.eos_token = self.tokenizer.bos_token, self.tokenizer.eos_token
        self.max_context_tokens: int = model.config.max_positions
        self.vocabulary_size: int = model.config.vocabulary_size
        self.block_size = settings.block_size
        self.num_blocks = _num_blocks(settings, self._program, self._device)
        try:
            self._cache = self._program.new_cache(self.num_blocks, self.block_size)
        except RuntimeError as error:  # torch has no narrower one for a CPU that is out of memory
            what = f"no memory for a KV cache of {self.num_blocks * self.block_size} tokens on {self._device}"
            raise ConfigurationError(f"{_cache_setting(settings)}: {what}") from error
        self.load_seconds = time.perf_counter() - started
        self.warm_up_seconds = self._warm_up()

    @property
    def device(self) -> str:
        return str(self._device)

    @property
    def kernel(self) -> str:
        return self._program.kernel

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Items[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes | None:
        return self.tokenizer.token_bytes(token_id)

    def new_detokenizer(self) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(self.tokenizer)

    def sampling_params(
        self, *, stop_ids: Items[int], allowed_token_ids: Items[int] | None = None, **params: Any
    ) -> SamplingParams:
        """What the sequence of a first choice carries, opaque to all but this file."""
        allowed = None if allowed_token_ids is None else token_mask(allowed_token_ids, self.vocabulary_size)
        return SamplingParams(stop_ids=tuple(stop_ids), allowed=allowed, **params)

    def of_choice(self, params: SamplingParams, choice: int) -> SamplingParams:
        """The same for another choice."""
        return replace(params, choice=choice)

    def execute(self, batch: Batch) -> list[Draw | None]:
        """What was drawn for each row that caught up, None for the others. Mutates: the cache's tensors."""
        step = self._step(batch)
        scores_LV, likeliest = self._program.run(step, self._cache)
        wanted = [_sampled(row.sequence) for row in batch.rows if row.is_caught_up]
        drawn = iter(self._sampler(scores_LV, [row for row in wanted if row.needs_scores]))
        found = iter(likeliest)
        draws = iter([next(drawn) if row.needs_scores else Draw(next(found)) for row in wanted])
        return [next(draws) if row.is_caught_up else None for row in batch.rows]

    def _step(self, batch: Batch) -> Step:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        scored: list[int] = []
        greedy: list[int] = []
        for row in batch.rows:
            sequence = row.sequence
            begin, end = sequence.num_computed_tokens, sequence.num_computed_tokens + row.num_new_tokens
            token_ids += sequence.token_ids[begin:end]
            positions += range(begin, end)
            slots += self._slots(sequence.block_ids, begin, end)
            if row.is_caught_up:
                needs_scores = sequence.params.needs_scores(sequence.num_output_tokens)
                (scored if needs_scores else greedy).append(len(token_ids) - 1)
        key_lengths = [row.sequence.num_computed_tokens + row.num_new_tokens for row in batch.rows]
        return Step(
            token_ids,
            positions,
            slots,
            query_lengths=[row.num_new_tokens for row in batch.rows],
            key_lengths=key_lengths,
            block_table=[
                row.sequence.block_ids[: -(-length // self.block_size)]
                for row, length in zip(batch.rows, key_lengths, strict=True)
            ],
            scored=scored,
            greedy=greedy,
        )

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


def _sampled(sequence: Sequence) -> SampledRow:
    return SampledRow(sequence.params, sequence.token_ids, sequence.num_prompt_tokens)


def _library(settings: DecoderSettings, device: torch.device) -> NativeLibrary | None:
    """The native library, with its threads, where it is to serve.

    Raises: NativeLibraryError where it must serve and can't.
    """
    if settings.kernel == "torch" or (device.type != "cpu" and settings.kernel == "auto"):
        return None
    try:
        if device.type != "cpu":
            raise NativeLibraryError(f"the native library computes on a CPU, not on {device}")
        library = native_library()
    except NativeLibraryError as error:
        if settings.kernel == "native":
            raise
        _log.warning("torch computes, several times slower than the native library", reason=str(error))
        return None
    cores = step_cores(settings.threads)
    library.use_threads(ThreadPlan(len(cores), cores if settings.pin_threads else (), settings.awake_microseconds))
    return library


def _loaded(
    checkpoint: Checkpoint, settings: DecoderSettings, device: torch.device, *, is_packed: bool
) -> tuple[CausalLanguageModel, str]:
    """The model, and the name of what its weights are in. Raises: ModelError."""
    if is_packed:
        packing = _PACKINGS[settings.dtype]
        model = load(checkpoint, device=device, dtype=torch.float32, packing=packing, on_progress=_progress())
        dtype = checkpoint.weight_type if packing == "as_stored" else settings.dtype
    else:
        if settings.dtype == "int8":
            raise NativeLibraryError("weights in int8 are the native library's, which does not serve")
        chosen = _DTYPES.get(settings.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32)
        model = load(checkpoint, device=device, dtype=chosen, on_progress=_progress())
        dtype = str(chosen).removeprefix("torch.")
    if not isinstance(model, CausalLanguageModel):
        raise CheckpointError(f"{checkpoint.path} is a {checkpoint.architecture}, not a causal language model")
    return model, dtype


def _progress() -> Callable[[int, int], None]:
    """Says how far a load has come, a line for each quarter of a checkpoint that takes its time."""
    started = time.perf_counter()
    told = 0

    def tell(num_done: int, num_all: int) -> None:
        nonlocal told
        quarter = 4 * num_done // max(num_all, 1)
        if quarter > told and time.perf_counter() - started > 2:
            _log.info("loading", percent=100 * num_done // num_all)
        told = max(told, quarter)

    return tell


def _program(
    model: CausalLanguageModel, library: NativeLibrary | None, settings: DecoderSettings, device: torch.device
) -> StepProgram:
    """How the model steps. Raises: ConfigurationError where the library must serve and can't."""
    if library is None:
        return EagerStep(model, device)
    cache_dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    try:
        step = NativeStep.of(model, library, cache_dtype)
        step.new_cache(1, settings.block_size)
    except CannotLower as error:
        if settings.kernel == "native":
            raise ConfigurationError(f"{setting_of(settings, 'kernel')}: {error}") from error
        _log.warning("torch steps, several times slower than the native library", reason=str(error))
        return EagerStep(model, device)
    return step


def _num_blocks(settings: DecoderSettings, program: StepProgram, device: torch.device) -> int:
    """As many as may be, once and for all: what a cache is promised must be there when it fills."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    most = int(available * settings.cache_memory_ratio)
    token_bytes = program.cache_bytes_per_token()
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
