"""The fields of config.json that `XLMRobertaConfig` does not have: which of them would change what a model computes.

transformers and code around it write more into config.json than the sizes of a model. Every field is one of four kinds:
honoured (a field of `XLMRobertaConfig`); without effect on the output of a loaded model (`NO_EFFECT`); a feature that
this model does not have, accepted only where its value switches it off (`FEATURES`); or unknown. Research code adds
harmless fields, so an unknown one is accepted, and the reports of loading, inspection and conversion name it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from xlmr_core.errors import shortened


def _is_empty(value: Any) -> bool:
    """Whether a value switches a feature off: None, False, 0, "", or a list or table with nothing in it."""
    if isinstance(value, Mapping):
        return all(_is_empty(entry) for entry in value.values())
    return value in (None, False, 0, "", [])


def _is_absolute(value: Any) -> bool:
    return value in (None, "absolute")


# A feature -> whether a value of it describes a model without the feature.
FEATURES: Mapping[str, Callable[[Any], bool]] = {
    "adapters": _is_empty,  # of the library adapters: modules between the layers
    "add_cross_attention": _is_empty,
    "attention_window": _is_empty,  # Longformer
    "auto_map": _is_empty,  # the model is computed by code of its own
    "is_decoder": _is_empty,
    "is_encoder_decoder": _is_empty,
    "lora_adaptations": _is_empty,  # low-rank updates inside the layers, by task
    "position_embedding_type": _is_absolute,
    "pruned_heads": _is_empty,
    "quantization_config": _is_empty,  # weights stored as integers
    "rope_parameters": _is_empty,  # rotary positions
    "rope_scaling": _is_empty,
    "rope_theta": _is_empty,
    "rotary_emb_base": _is_empty,
    "sliding_window": _is_empty,
}
NO_EFFECT = frozenset(
    {
        # What transformers notes about a file.
        *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path"),
        *("name_or_path", "_commit_hash", "finetuning_task", "tokenizer_class", "task_specific_params", "prefix"),
        # Names of labels and tokens. The model reads pad_token_id only; labels are read as `labels`.
        *("id2label", "label2id", "num_labels", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id"),
        *("decoder_start_token_id", "keys_to_ignore_at_inference"),
        # How transformers runs and returns: the same numbers, up to rounding for chunk_size_feed_forward.
        *("_attn_implementation", "attn_implementation", "chunk_size_feed_forward", "gradient_checkpointing"),
        *("output_attentions", "output_hidden_states", "output_past", "return_dict", "torchscript", "use_bfloat16"),
        *("use_cache", "tf_legacy_loss", "use_return_dict"),
        # Generation, which an encoder does not do.
        *("bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping"),
        *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
        *("forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
        *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values"),
        *("repetition_penalty", "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p"),
        *("typical_p", "cross_attention_hidden_size", "tie_encoder_decoder"),
        # What other libraries note about the use of the output.
        *("sentence_transformers", "matryoshka_dimensions", "truncate_dim", "task_instructions"),
    }
)


def check_features(values: Mapping[str, Any]) -> None:
    """Refuses a config.json that describes something this model does not compute.

    Raises:
        ValueError: A field of `FEATURES` has a value that switches its feature on.
    """
    for name, is_off in FEATURES.items():
        if name in values and not is_off(values[name]):
            raise ValueError(
                f"{name} {shortened(values[name])} asks for something that this encoder does not have. "
                f"If the weights are those of a plain XLM-RoBERTa all the same, remove {name} from config.json"
            )


def unknown_fields(values: Mapping[str, Any], honoured: frozenset[str]) -> list[str]:
    """The fields of a config.json that are neither honoured nor known to have no effect, by name."""
    return sorted(name for name in values if name not in honoured | NO_EFFECT | FEATURES.keys())
