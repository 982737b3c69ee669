"""What any program keeps to, random ones and those of the families: order, meaning, lives and buffers."""

import dataclasses
from typing import Any

import every_model
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.errors import CannotLower
from model.linear import Linear
from model.metadata import AttentionMetadata
from model.normalization import LayerNorm
from model.program.buffers import assign, lives
from model.program.fusion import fuse
from model.program.lowering import lower
from model.program.operation import Field, Operation, Program, Slot

NAMES = ["Embedding", "Linear", "Linear", "Activation", "Gate", "Add", "Widen", "RMSNorm", "Rotary", "Attend"]


@st.composite
def programs(draw: st.DrawFn, rows: str = "TLS", widths: int = 4) -> Program:
    """Operations that read any values before them, whatever their shapes; the result is any value."""
    slots: list[Slot] = []
    operations = []
    for number in range(draw(st.integers(1, 16))):
        name = draw(st.sampled_from(NAMES)) if slots else "Embedding"
        num_inputs = {"Embedding": 0, "Add": 2}.get(name, 1)
        inputs = tuple(draw(st.sampled_from(slots)) for _ in range(num_inputs))
        rows_of_output: Any = draw(st.sampled_from(rows))
        slots.append(Slot(number, rows_of_output, draw(st.integers(1, widths))))
        operations.append(Operation(name, f"path.{number}", (*inputs, Field("metadata")), slots[-1]))
    return Program(tuple(operations), draw(st.sampled_from(slots)))


def meaning(program: Program) -> object:
    """What was done to what. Fails where a slot is written twice, or read before it is written or after it is gone."""
    left: dict[Any, object] = {}
    for operation in program.operations:
        inside = {value: left[value] for value in operation.reads}
        for part in operation.parts:
            inputs = tuple(inside[value] if isinstance(value, Slot) else value for value in part.inputs)
            assert part.output not in left
            assert part.output not in inside
            inside[part.output] = (part.name, part.path, inputs)
        left[operation.result] = inside[operation.result]
    return left[program.result]


def assert_buffers_hold(program: Program) -> None:
    """As if the program ran: each read finds its slot in its buffer, and no write falls on what is being read."""
    assigned = assign(program)
    held: dict[int, Slot] = {}
    for operation in program.operations:
        read = {assigned.places[slot] for slot in operation.reads}
        assert all(held[assigned.places[slot]] == slot for slot in operation.reads)
        if operation.result is not None:
            place = assigned.places[operation.result]
            buffer = assigned.buffers[place]
            assert place not in read
            assert buffer.rows == operation.result.rows
            assert buffer.width >= operation.result.width
            held[place] = operation.result
    if program.result is not None:
        assert held[assigned.places[program.result]] == program.result


@settings(deadline=None)
@given(programs())
def test_fusing_keeps_the_meaning(program: Program) -> None:
    assert meaning(fuse(program)) == meaning(program)


def test_nothing_joins_a_product_before_what_it_reads_is_there() -> None:
    """The activation moves into the product, before the norm; the sum, which reads both, stays behind the norm."""
    x, product, normed, activated, total = (Slot(number, "T", 8) for number in range(5))
    operations = (
        Operation("Embedding", "tokens", (Field("token_ids_T"),), x),
        Operation("Linear", "product", (x, Field("metadata")), product),
        Operation("RMSNorm", "norm", (x,), normed),
        Operation("Activation", "activation", (product,), activated),
        Operation("Add", "", (normed, activated), total),
    )
    program = Program(operations, total)
    assert lines(fuse(program)) == ["Embedding T8", "Linear+Activation T8", "RMSNorm T8", "Add T8"]
    assert meaning(fuse(program)) == meaning(program)


@settings(deadline=None)
@given(programs())
def test_fusing_twice_is_fusing_once(program: Program) -> None:
    assert fuse(fuse(program)) == fuse(program)


@settings(deadline=None)
@given(programs())
def test_no_value_is_read_after_its_buffer_was_given_away(program: Program) -> None:
    assert_buffers_hold(program)
    assert_buffers_hold(fuse(program))


@settings(deadline=None)
@given(programs(rows="T", widths=1))
def test_there_are_no_more_buffers_than_values_at_once(program: Program) -> None:
    alive = lives(program)
    most = max(sum(number in life for life in alive.values()) for number in range(len(program.operations)))
    assert len(assign(program).buffers) == most


@pytest.mark.parametrize("name", every_model.MODELS)
def test_families_fuse_into_fewer(name: str) -> None:
    program = lower(every_model.MODELS[name]())
    fused = fuse(program)
    assert len(fused.operations) < len(program.operations)
    assert meaning(fused) == meaning(program)
    assert fused.operations[-1].result == fused.result
    for one in (program, fused):
        assert_buffers_hold(one)


def lines(program: Program) -> list[str]:
    """An operation a line: what is done, with a star where rows may be quantised, and the rows and width of it."""
    return [
        f"{'+'.join(part.name for part in operation.parts)}{'*' * operation.quantises}"
        f" {operation.result.rows}{operation.result.width}"
        for operation in program.operations
        if operation.result is not None
    ]


def test_a_llama_when_fused() -> None:
    """Width 48, 6 query heads for 2 of keys, 80 within a gate, 96 tokens."""
    block = ["RMSNorm* T48", "Linear T80", "Rotary+Attend T48", "Linear+Add T48"]
    block += ["RMSNorm* T48", "Linear+Gate T80", "Linear+Add T48"]
    expected = ["Embedding T48", *block * 3, "RMSNorm T48", "TakeRows L48", "Linear+Widen L96"]
    assert lines(fuse(lower(every_model.MODELS["llama"]()))) == expected


def test_a_bert_when_fused() -> None:
    """Width 48, 80 within the feed-forward layer, two labels."""
    block = ["Linear T144", "Attend T48", "Linear+Add T48", "LayerNorm* T48"]
    block += ["Linear+Activation T80", "Linear+Add T48", "LayerNorm* T48"]
    embeddings = ["Embedding T48"] * 2 + ["Add T48", "Embedding T48", "Add T48", "LayerNorm* T48"]
    head = ["FirstToken S48", "Linear+Activation S48", "Linear+Widen S2"]
    expected = [*embeddings, *block * 2, *block[:-1], "LayerNorm T48", *head]
    assert lines(fuse(lower(every_model.MODELS["BertForSequenceClassification"]()))) == expected


def test_what_an_encoder_decoder_remembers() -> None:
    """The encoder over memory tokens, then a product and a write for each block of the decoder."""
    program = fuse(lower(every_model.MODELS["encoder-decoder"](), "remember"))
    assert program.result is None
    assert {operation.result.rows for operation in program.operations if operation.result} == {"U"}
    stores = [operation for operation in program.operations if operation.name == "Store"]
    assert [operation.inputs[1:] for operation in stores] == [
        (Field("memory"), Field("cache.memory_layers", i)) for i in range(3)
    ]


class Composed(nn.Module):
    """One product, and around it what a test puts there."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = every_model.MODELS["llama"]().get_submodule("decoder.embeddings.tokens")
        self.product = Linear(48, 48, has_bias=False)
        self.norm = LayerNorm(48, 1e-5)


class Doubles(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.product(self.tokens(token_ids_T), metadata) * 2


class Views(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.norm(self.product(self.tokens(token_ids_T), metadata)[:1])


class Branches(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        x_TD = self.product(self.tokens(token_ids_T), metadata)
        return self.norm(x_TD) if x_TD.sum() > 0 else x_TD


class AddsANumber(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.product(self.tokens(token_ids_T), metadata) + 1


class ReadsAnotherField(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.tokens(metadata.slot_mapping_T)


class OwnsAWeight(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.tokens(token_ids_T) + self.norm.weight


class Counts(Composed):
    def forward(self, token_ids_T: Tensor, metadata: AttentionMetadata) -> Tensor:
        return self.tokens(token_ids_T) if len(token_ids_T) else token_ids_T


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        (Doubles, r"mul.*product.*is neither a leaf nor a sum"),
        (Views, r"getitem.*product.*is neither a leaf nor a sum"),
        (Branches, r"forward is no straight line after gt"),
        (AddsANumber, r"add.*product.*is neither a leaf nor a sum"),
        (ReadsAnotherField, r"tokens.*reads 'metadata.slot_mapping_T', which is no field"),
        (OwnsAWeight, r"norm_weight.*is neither a leaf nor a sum"),
        (Counts, r"forward is no straight line after metadata: 'len'"),
    ],
)
def test_what_cannot_be_lowered_is_named(kind: type[nn.Module], node: str) -> None:
    with pytest.raises(CannotLower, match=node):
        lower(kind())


def test_a_failed_trace_leaves_modules_as_they_were() -> None:
    model = Branches()
    with pytest.raises(CannotLower):
        lower(model)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    assert model(torch.zeros(3, dtype=torch.int64), AttentionMetadata.pack([3])).shape == (3, 48)


def test_programs_are_values() -> None:
    """Lowered twice, a model gives equal programs; nothing changes one."""
    model = every_model.MODELS["gpt2"]()
    program = lower(model)
    assert lower(model) == program
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.operations[0].path = ""  # type: ignore[misc]
