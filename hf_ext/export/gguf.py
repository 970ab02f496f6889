"""A decoder as one GGUF file, which llama.cpp and its kin run and transformers reads back.

    python -m hf_ext.export.gguf outputs/quickstart outputs/quickstart.gguf --type q8_0

f16 keeps matrices in 16 bits; q8_0 in blocks of 32 integers of 8 bits with a scale in 16 bits each, 8.5 bits a weight. Norms
and biases stay in 32 bits. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import argparse
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from hf_ext.export.gguf_architecture import check_row_sizes, choose_architecture, fields_not_read, turns_neighbours
from hf_ext.export.gguf_tokenizer import read_tokenizer
from hf_ext.hub.model_folder import check_holds_model
from hf_ext.models.configuration_choices import check_choice
from hf_ext.models.decoder import HfxDecoderConfig, HfxDecoderForCausalLM


TYPES = ("f32", "f16", "q8_0")
LARGEST_F16 = 65504.0


def export_gguf(
    model: HfxDecoderForCausalLM,
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    type: str = "f16",
    name: str | None = None,
) -> None:
    """Write `model` as a GGUF file, which appears whole or not at all.

    Args:
        path: of the file. tokenizer: byte-level BPE, see `gguf_tokenizer.py`; None leaves it out, and then only
            transformers can read the file.
        type: of the matrices: "f32", "f16" or "q8_0". name: of the model; default the file's.

    Raises:
        ValueError: one line; a model that isn't our decoder, an option that llama.cpp can't express (by field name), a
            tokenizer that it hasn't, a type that the sizes or weights don't fit, a file that exists.
        ImportError: gguf isn't installed.
    """
    path = Path(path)
    check_choice("type", type, TYPES)
    if path.suffix != ".gguf":
        raise ValueError(f"path={str(path)!r}: must end in .gguf")
    if path.exists():
        raise ValueError(f"path={str(path)!r}: exists already; name another file, or remove it")
    if not isinstance(model, HfxDecoderForCausalLM):
        raise ValueError(f"model: a {model.__class__.__name__} can't be written as GGUF; give an HfxDecoderForCausalLM")
    config = model.config
    architecture = choose_architecture(config)
    tokens = None if tokenizer is None else read_tokenizer(tokenizer, config.vocab_size)
    if find_spec("gguf") is None:
        raise ImportError("gguf isn't installed: pip install 'hf-ext[export]'")
    import gguf

    kind = gguf.GGMLQuantizationType[type.upper()]
    check_row_sizes(config, gguf.GGML_QUANT_SIZES[kind][0], type)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    try:
        writer.add_name(path.stem if name is None else name)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_config(writer, config, architecture)
        _add_tokenizer(writer, config, tokenizer, tokens)
        names = gguf.get_tensor_name_map(_architecture_number(gguf, architecture), config.num_hidden_layers)
        weights = {_renamed(key, names): weight for key, weight in _weights(model, architecture)}
        types = {key: kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32 for key, weight in weights.items()}
        for (
            key,
            weight,
        ) in weights.items():  # their sizes come first in the file, and no second copy of the model is held
            _announce(gguf, writer, key, weight.shape, types[key])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for key, weight in weights.items():
            numbers = weight.detach().float().cpu().contiguous()
            largest = float(numbers.abs().max())
            if types[key].name != "F32" and not largest <= LARGEST_F16:
                raise ValueError(f"type={type!r}: {key} holds {largest:.3g}, which 16 bits can't; use f32")
            writer.write_tensor_data(gguf.quants.quantize(numbers.numpy(), types[key]))
        writer.close()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _architecture_number(gguf, architecture: str):
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)


def _renamed(key: str, names) -> str:
    own, _, suffix = key.rpartition(".")
    return f"{names.get_name(own)}.{suffix}"


def _announce(gguf, writer, key: str, shape: torch.Size, kind) -> None:
    """Tell the writer what will come, by name, shape and type."""
    dtype = np.dtype({"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8))
    stored = gguf.quant_shape_to_byte_shape(shape, kind) if dtype == np.uint8 else tuple(shape)
    writer.add_tensor_info(key, stored, dtype, int(np.prod(stored)) * dtype.itemsize, raw_dtype=kind)


def _add_config(writer, config: HfxDecoderConfig, architecture: str) -> None:
    rule = next(iter(config.rope_parameters_by_layer_type().values()))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(float(rule["rope_theta"]))
    writer.add_rope_dimension_count(config.head_dim)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(float(config.attn_logit_softcapping))
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping))
        writer.add_sliding_window(config.sliding_window)


def _add_tokenizer(writer, config: HfxDecoderConfig, tokenizer, tokens) -> None:
    if tokens is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens.tokens)
        writer.add_token_types(tokens.types)
        writer.add_token_merges(tokens.merges)
        writer.add_add_bos_token(tokens.adds_bos)
        writer.add_add_eos_token(tokens.adds_eos)
        if tokenizer.chat_template is not None:
            writer.add_chat_template(tokenizer.chat_template)
    for kind, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
        ("unk", writer.add_unk_token_id),
    ):
        number = getattr(config, f"{kind}_token_id", None)
        if number is None and tokenizer is not None:
            number = getattr(tokenizer, f"{kind}_token_id")
        if isinstance(number, list):
            raise ValueError(f"{kind}_token_id={number}: GGUF ends a text by one token; set one of them")
        if number is not None:
            add(number)


def _weights(model: HfxDecoderForCausalLM, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Name -> weight as the architecture wants it; a tied head is left out."""
    config = model.config
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".q_proj." in name or ".k_proj." in name or ".q_norm." in name or ".k_norm." in name:
            weight = _rotary_order(weight, config.head_dim, config.rope_interleave, turns_neighbours(architecture))
        if architecture == "gemma2" and name.endswith("norm.weight"):
            weight = weight + 1  # theirs multiplies by it as it is
        yield name, weight


def _rotary_order(weight: torch.Tensor, head_dim: int, are_neighbours: bool, wants_neighbours: bool) -> torch.Tensor:
    """Rows (H * D, ...) in the order in which pairs of dims that turn together are neighbours, or stand D/2 apart.

    Scores don't change: query and key are reordered alike.
    """
    if are_neighbours == wants_neighbours:
        return weight
    pairs = (2, head_dim // 2) if wants_neighbours else (head_dim // 2, 2)
    return weight.unflatten(0, (-1, *pairs)).transpose(1, 2).flatten(0, 2)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m hf_ext.export.gguf", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a saved decoder with its tokenizer")
    parser.add_argument("path", help="the file to write, NAME.gguf")
    parser.add_argument("--type", default="f16", help=f"of the matrices: {', '.join(TYPES)}")
    arguments = parser.parse_args(argv)
    check_holds_model(arguments.folder, f"folder={arguments.folder!r}")
    config = AutoConfig.from_pretrained(arguments.folder, trust_remote_code=False)
    if not isinstance(config, HfxDecoderConfig):
        raise ValueError(f"model_type={config.model_type!r}: can't be written as GGUF; give a folder of an hfx_decoder")
    model = HfxDecoderForCausalLM.from_pretrained(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=False)
    export_gguf(model, arguments.path, tokenizer, type=arguments.type)
    architecture = choose_architecture(config)
    print(f"{arguments.path}: {Path(arguments.path).stat().st_size / 2**20:.1f} MB, {architecture}")
    if missed := fields_not_read(config, architecture):
        said = ", ".join(f"{field}={value}" for field, value in missed.items())
        print(f"to read it by transformers, give a config that says {said} (docs/quantization.md, GGUF)")


if __name__ == "__main__":
    from hf_ext.training.recipe import run_recipe_main

    run_recipe_main(main)
