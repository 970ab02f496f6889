"""What `generate` is asked for and a model can't do exactly: refused in one line before the first token.

B rows, T tokens of the prompt, padding included.
"""

import torch
from transformers import GenerationMixin
from transformers.masking_utils import create_masks_for_generate

from hf_ext.models.attention_inputs import changing_frequencies
from hf_ext.models.compiled_decoding import (
    check_compiled,
    compiles_here,
    sample_over_static_cache,
    why_not_static,
)
from hf_ext.models.pretrained_model import check_rows_have_tokens
from hf_ext.ops.flex_attention import check_flex_cache


class CheckedGenerationMixin(GenerationMixin):
    """transformers' `generate` for models whose body holds its rotary embeddings in `rotary_emb`, by layer type.

    The prompt is what the text goes on from: of an encoder-decoder, the decoder's.
    """

    @property
    def _prompt_mask_name(self) -> str:
        return "decoder_attention_mask" if self.config.is_encoder_decoder else "attention_mask"

    def _prefill(self, input_ids, generation_config, model_kwargs: dict, *args, **kwargs):
        """As transformers', on the whole prompt, before it is cut into chunks of `prefill_chunk_size`.

        Raises:
            ValueError: a row of padding alone; or chunks where rotary frequencies change within the prompt, and the
                chunks before the last would be cached at other ones.
        """
        for name in ("attention_mask", "decoder_attention_mask"):
            if padding_mask(model_kwargs, name) is not None:
                check_rows_have_tokens(model_kwargs[name])
        mask = padding_mask(model_kwargs, self._prompt_mask_name)
        chunk = generation_config.prefill_chunk_size
        if chunk is not None:
            cache = model_kwargs.get("past_key_values")
            first = chunk + (0 if cache is None else int(cache.get_seq_length()))
            lengths = token_counts(input_ids, mask)
            cached = token_counts(input_ids[:, :first], None if mask is None else mask[:, :first])
            rule = changing_frequencies(self.base_model.rotary_emb, cached, lengths)
            if rule is not None:
                raise ValueError(
                    f"prefill_chunk_size={chunk}: rope_type={rule!r} changes its frequencies within the prompt of "
                    f"{int(lengths.max())} tokens, and the first chunk would be cached at other ones; leave it out"
                )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _valid_auto_compile_criteria(self, model_kwargs: dict, generation_config) -> bool:
        """As transformers', but a `compile_config` is for a CPU too.

        Raises:
            ValueError: it is given where nothing can be compiled.
        """
        generation_config.compile_config = compiles_here(generation_config.compile_config, self.device)
        is_compiled = super()._valid_auto_compile_criteria(model_kwargs, generation_config)
        check_compiled(generation_config, is_compiled)
        return is_compiled

    def _sample(
        self,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        synced_gpus: bool = False,
        streamer=None,
        **model_kwargs,
    ):
        """As transformers', where a compiled step needs no preparation without any: the same tokens."""
        is_compiled = self._valid_auto_compile_criteria(model_kwargs, generation_config)
        if is_compiled and why_not_static(self, generation_config, model_kwargs, synced_gpus) is None:
            return sample_over_static_cache(
                self, input_ids, logits_processor, stopping_criteria, generation_config, streamer, **model_kwargs
            )
        return super()._sample(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus=synced_gpus,
            streamer=streamer,
            **model_kwargs,
        )

    @staticmethod
    def create_masks_for_generate(config, **kwargs):
        """As transformers', which makes the masks of a static cache before the model is called."""
        check_flex_cache(config._attn_implementation, kwargs.get("past_key_values"))
        return create_masks_for_generate(config, **kwargs)

    def generate_batch(self, *args, **kwargs):
        """As transformers', which before 5.22 leaves the paged attention behind: without its cache it is another number."""
        attention = self.config._attn_implementation
        try:
            return super().generate_batch(*args, **kwargs)
        finally:
            if self.config._attn_implementation != attention:
                self.set_attn_implementation(attention)

    def _assisted_decoding(self, input_ids, *args, generation_config, inputs_tensor=None, **kwargs):
        """As transformers', where drafted tokens are judged at the frequencies that each would have alone.

        Args:
            inputs_tensor: what an encoder-decoder's encoder has read; generate gives it to a method that names it.

        Raises:
            ValueError: rotary frequencies change before the text is complete; or `use_mtp`.
        """
        if getattr(generation_config, "use_mtp", False):  # transformers 5.5 hasn't it
            raise ValueError(
                "use_mtp=True: the blocks that predict further tokens serve training only; leave it out, or give an "
                "assistant_model or prompt_lookup_num_tokens"
            )
        lengths = token_counts(input_ids, padding_mask(kwargs, self._prompt_mask_name))
        final = lengths + (generation_config.max_length - input_ids.shape[1])
        rule = changing_frequencies(self.base_model.rotary_emb, lengths, final)
        if rule is not None:
            raise ValueError(
                f"assisted generation: rope_type={rule!r} changes its frequencies between {int(lengths.min())} and "
                f"{int(final.max())} tokens, and drafted tokens would be judged at other ones; generate without "
                "assistant_model, prompt_lookup_num_tokens and assistant_early_exit, or fewer tokens"
            )
        return super()._assisted_decoding(
            input_ids, *args, generation_config=generation_config, inputs_tensor=inputs_tensor, **kwargs
        )


def padding_mask(arguments: dict, name: str) -> torch.Tensor | None:
    """The 2-D mask of that name; None where there is none, or one in another form."""
    mask = arguments.get(name)
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def token_counts(input_ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B,) int64: tokens of each row of (B, T) that aren't padding."""
    return torch.ones_like(input_ids).sum(dim=-1) if mask is None else mask.long().sum(dim=-1)
