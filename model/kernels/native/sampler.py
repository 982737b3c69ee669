"""The sampler in the native library: the tokens that `model.sampling` draws, in a fraction of its time.

Rows are shared on the threads, and the GIL is free meanwhile. The structures mirror `sampling.h`.
"""

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_void_p
from typing import Any

import numpy
import torch
from torch import Tensor

from model.errors import NativeLibraryError, StepError
from model.kernels.native.library import NativeLibrary
from model.sampling import LEAST_LOGPROB, Draw, SampledRow, no_numbers, none_allowed

_NO_NUMBERS, _NONE_ALLOWED = 1, 2


class _RowStruct(ctypes.Structure):
    _fields_ = (
        ("scores", c_void_p),
        ("allowed", c_void_p),
        ("tokens", c_void_p),
        ("biased", c_void_p),
        ("bias", c_void_p),
        ("banned", c_void_p),
        ("top", c_void_p),
        ("top_logprobs", c_void_p),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
        ("chance", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("repetition_penalty", c_float),
        ("top_k", c_int32),
        ("num_prompt", c_int32),
        ("num_tokens", c_int32),
        ("num_biased", c_int32),
        ("num_banned", c_int32),
        ("num_top", c_int32),
        ("given", c_int32),
    )


class _DrawnStruct(ctypes.Structure):
    _fields_ = (("logprob", c_double), ("token", c_int32), ("status", c_int32))


class NativeSampler:
    """Draws one token a row of float32 scores on a CPU. Raises: NativeLibraryError for want of memory."""

    def __init__(self, library: NativeLibrary, vocabulary_size: int) -> None:
        library.declare("janus_sampler_new", c_void_p, ctypes.c_char_p, c_int32)
        library.declare("janus_sampler_free", None, c_void_p)
        library.declare("janus_sampler_draw", c_int32, c_void_p, c_void_p, c_void_p, c_int32, c_void_p)
        self._library = library
        self._vocabulary_size = vocabulary_size
        self._handle = library.functions.janus_sampler_new(library.variant.encode(), vocabulary_size)
        if not self._handle:
            raise NativeLibraryError("no memory for a sampler")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.functions.janus_sampler_free(self._handle)

    def __call__(self, scores_LV: Tensor, rows: Sequence[SampledRow]) -> list[Draw]:
        """The next token of each row.

        Raises: StepError for a row without a largest score, or in which no token may be drawn; and for want of memory.
        """
        assert scores_LV.shape == (len(rows), self._vocabulary_size)
        assert scores_LV.dtype == torch.float32
        assert scores_LV.is_contiguous()
        if not rows:
            return []
        prepared = [_Prepared(row, scores_LV.data_ptr() + i * scores_LV.stride(0) * 4) for i, row in enumerate(rows)]
        structs = (_RowStruct * len(rows))(*(each.struct for each in prepared))
        drawn = (_DrawnStruct * len(rows))()
        draw = self._library.functions.janus_sampler_draw
        if draw(self._handle, self._library.threads, structs, len(rows), drawn):
            raise StepError("no memory to draw tokens in")
        return [each.draw(of, number) for number, (each, of) in enumerate(zip(prepared, drawn, strict=True))]


class _Prepared:
    """A row as the library reads it, and the memory that it points to."""

    def __init__(self, row: SampledRow, scores: int) -> None:
        params = row.params
        self._num_top = params.top_logprobs
        self._top = array("i", bytes(4 * (self._num_top or 0)))
        self._top_logprobs = array("d", bytes(8 * (self._num_top or 0)))
        self._kept: list[Any] = []
        tokens = row.token_ids if params.has_penalties else ()
        banned = params.banned_ids(row.position)
        allowed = row.allowed
        self.struct = _RowStruct(
            scores=scores,
            allowed=self._address(None if allowed is None else numpy.ascontiguousarray(allowed)),
            tokens=self._address(array("i", tokens)),
            biased=self._address(array("i", [each for each, _ in params.logit_bias])),
            bias=self._address(array("f", [bias for _, bias in params.logit_bias])),
            banned=self._address(array("i", banned)),
            top=self._address(self._top),
            top_logprobs=self._address(self._top_logprobs),
            temperature=params.temperature,
            top_p=params.top_p,
            min_p=params.min_p,
            chance=row.chance,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            top_k=params.top_k,
            num_prompt=row.num_prompt_tokens,
            num_tokens=len(tokens),
            num_biased=len(params.logit_bias),
            num_banned=len(banned),
            num_top=-1 if self._num_top is None else self._num_top,
            given=-1 if row.given is None else row.given,
        )

    def draw(self, drawn: _DrawnStruct, number: int) -> Draw:
        if drawn.status == _NO_NUMBERS:
            raise no_numbers(number)
        if drawn.status == _NONE_ALLOWED:
            raise none_allowed(number)
        if self._num_top is None:
            return Draw(drawn.token)
        found = zip(self._top, self._top_logprobs, strict=True)
        top = tuple((token, max(logprob, LEAST_LOGPROB)) for token, logprob in found if token >= 0)
        return Draw(drawn.token, max(drawn.logprob, LEAST_LOGPROB), top)

    def _address(self, values: Any) -> int | None:
        if values is None or len(values) == 0:
            return None
        self._kept.append(values)
        return int(values.ctypes.data if isinstance(values, numpy.ndarray) else values.buffer_info()[0])
