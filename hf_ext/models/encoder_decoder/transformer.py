"""The Transformer as it was published, of this family's parts."""

from hf_ext.models.encoder_decoder.configuration_encoder_decoder import HfxEncoderDecoderConfig
from hf_ext.models.encoder_decoder.modeling_encoder_decoder_heads import HfxEncoderDecoderForConditionalGeneration


def Transformer(  # noqa: N802  it stands for the model's class
    src_vocab_size: int = 37_000,
    tgt_vocab_size: int = 37_000,
    d_model: int = 512,
    num_heads: int = 8,
    num_encoder_layers: int = 6,
    num_decoder_layers: int = 6,
    d_ff: int = 2048,
    dropout: float = 0.1,
    *,
    share_embeddings: bool = False,
    max_position_embeddings: int = 2048,
    pad_token_id: int = 0,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
    attn_implementation: str | None = None,
    **options,
) -> HfxEncoderDecoderForConditionalGeneration:
    """Post-norm blocks of multi-head attention and ReLU, LayerNorm, sinusoidal positions; the base model by default.

    Vaswani et al. 2017, arXiv 1706.03762: sec. 3.1 (wiring), 3.3 (feed-forward), 3.4 (the output matrix is the target's
    embedding; embeddings times sqrt(d_model)), 3.5 (positions), 5.4 (dropout of each sublayer's output and of the embedded
    tokens), table 3 (sizes).

    Args:
        src_vocab_size, tgt_vocab_size: tokens of the source and the target.
        d_model, d_ff: widths of the residual stream and inside the feed-forward. num_heads: divides d_model.
        num_encoder_layers, num_decoder_layers: counts. dropout: probability in training.
        share_embeddings: one matrix for source, target and output, as the paper has it for one common vocabulary.
        max_position_embeddings: tokens in a row the model is made for; the positions themselves have no end.
        pad_token_id, bos_token_id, eos_token_id: in both vocabularies. The target starts with bos_token_id, or where there
            is none with pad_token_id.
        attn_implementation: "eager", "sdpa", "hfx_tiled", …; default the best.
        options: any field of `HfxEncoderDecoderConfig`, in place of the paper's choice.

    Raises:
        ValueError: one line, for what can't be built.
    """
    if share_embeddings and src_vocab_size != tgt_vocab_size:
        raise ValueError(
            f"share_embeddings=True: src_vocab_size={src_vocab_size} and tgt_vocab_size={tgt_vocab_size} differ; use one "
            "vocabulary or leave it out"
        )
    paper = {
        "vocab_size": tgt_vocab_size,
        "encoder_vocab_size": None if share_embeddings else src_vocab_size,
        "share_embeddings": share_embeddings,
        "hidden_size": d_model,
        "num_attention_heads": num_heads,
        "encoder_layers": num_encoder_layers,
        "num_hidden_layers": num_decoder_layers,
        "intermediate_size": d_ff,
        "block_type": "post_norm",
        "norm_type": "layernorm",
        "norm_eps": 1e-6,
        "mlp_type": "plain",
        "hidden_act": "relu",
        "mlp_bias": True,
        "position_embedding_type": "sinusoidal",
        "max_position_embeddings": max_position_embeddings,
        "embedding_multiplier": d_model**0.5,
        "tie_word_embeddings": True,
        "hidden_dropout": dropout,
        "embedding_dropout": dropout,
        "initializer_range": d_model
        ** -0.5,  # embedded tokens then have variance 1, as the positions added to them nearly
        "pad_token_id": pad_token_id,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "decoder_start_token_id": pad_token_id if bos_token_id is None else bos_token_id,
    }
    config = HfxEncoderDecoderConfig(**(paper | options))
    return HfxEncoderDecoderForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
