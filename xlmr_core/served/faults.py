"""The faults of pipelines: what is done to a text, or to the vectors of its tokens, that the checkpoint does not say.

A fault is data: a name, its cause in one sentence, a thread in which it was found, and the fields of `Steps` that it
changes. A fault whose change depends on the right steps is left out where it changes nothing: mean pooling is a fault
only where the checkpoint does not pool so. The faults of the encoder are those of `xlmr_core.parity.FAULTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xlmr_core.parity.faults import FAULTS, Fault
from xlmr_core.served.pipeline import Pipeline, Steps

HEADS = ("lm_head.", "pooler.", "tagger.", "answer.")  # no vector and no score is read there
Change = Mapping[str, Any] | Callable[[Steps], Mapping[str, Any]]


@dataclass(frozen=True)
class PipelineFault:
    """One change of the steps from text to vector or score.

    kind: "embedding" or "score" for what only these have. rounding: whether it only makes numbers less exact.
    """

    name: str
    cause: str
    change: Change
    thread: str | None = None
    kind: str | None = None
    rounding: bool = False

    def made(self, steps: Steps) -> Steps:
        """The steps with this fault in them."""
        change = self.change(steps) if callable(self.change) else self.change
        return replace(steps, **change)


def _encoder(*faults: str | Fault, **others: Any) -> Change:
    return lambda steps: {"encoder": (*steps.encoder, *faults), **others}


def _ids(name: str) -> Change:
    return lambda steps: {"id_rules": (*steps.id_rules, name)}


def _longest(tokens: int) -> Change:
    return lambda steps: {"max_tokens": min(tokens, steps.max_tokens)}


def _prefix(prompt: str) -> Change:
    return lambda steps: {"prompt": prompt + steps.prompt}


TEXT_FAULTS = (
    PipelineFault("lower_cased", "the text is lower-cased, as for an uncased BERT", {"lower": True}),
    PipelineFault(
        "normalizer_missing",
        "the text is not normalised: SentencePiece's table (NFKC and white space) is not applied",
        {"normalizer": "none"},
        "https://github.com/ggml-org/llama.cpp/pull/8638",
    ),
    PipelineFault(
        "spaces_not_collapsed",
        "runs of white space are not collapsed, and white space at the ends is not removed",
        {"normalizer": "spaces kept"},
        "https://github.com/huggingface/transformers/issues/9637",
    ),
    PipelineFault(
        "normalizer_nfkc",
        "the text is normalised by Unicode's NFKC, not by SentencePiece's table: joiners and some marks differ",
        {"normalizer": "nfkc"},
    ),
    PipelineFault(
        "normalizer_by_grapheme",
        "SentencePiece's table is applied to one grapheme at a time: some marks are lost, or not composed",
        {"normalizer": "graphemes"},
        "https://github.com/huggingface/tokenizers/issues/2116",
    ),
    PipelineFault(
        "prompt_missing",
        "the prompt is not put before the text",
        {"prompt": ""},
    ),
    PipelineFault(
        "prompt_doubled", "the prompt is put before the text twice", lambda steps: {"prompt": 2 * steps.prompt}
    ),
    PipelineFault(
        "prompt_query_added",
        "'query: ' is put before the text, where it should not be",
        _prefix("query: "),
        "https://github.com/embeddings-benchmark/mteb/issues/3517",
    ),
    PipelineFault(
        "prompt_passage_added", "'passage: ' is put before the text, where it should not be", _prefix("passage: ")
    ),
)

ID_FAULTS = (
    PipelineFault(
        "ids_off_by_one",
        "the numbers of SentencePiece are taken as ids: the model's are one higher from 4 up",
        _ids("ids_without_offset"),
        "https://github.com/google/sentencepiece/issues/1042",
    ),
    PipelineFault(
        "mask_id_wrong",
        "<mask> in a text gets the id of the last ordinary piece",
        _ids("tokenizer_mask_id_wrong"),
    ),
    PipelineFault(
        "unk_is_zero",
        "an unknown character has the id 0, which is <s>, where <unk> is 3",
        _ids("tokenizer_unk_is_zero"),
    ),
    PipelineFault(
        "unk_is_end",
        "an unknown character has the id 2, which is </s>, where <unk> is 3: the tokenizer's file does not name it",
        _ids("unk_is_end"),
    ),
    PipelineFault("start_missing", "<s> is not put before the text", {"start": False}),
    PipelineFault("end_missing", "</s> is not put after the text", _ids("tokenizer_end_missing")),
    PipelineFault("specials_missing", "neither <s> nor </s> is put around the text", _ids("tokenizer_frame_missing")),
    PipelineFault(
        "separator_single",
        "one </s> stands between the texts of a pair, where XLM-R has two",
        _ids("tokenizer_single_separator"),
        kind="score",
    ),
    PipelineFault(
        "separator_end_start",
        "</s><s> stands between the texts of a pair, where XLM-R has </s></s>",
        {"separator": "</s><s>"},
        "https://github.com/ggml-org/llama.cpp/pull/9510",
        kind="score",
    ),
    *(
        PipelineFault(
            f"truncated_at_{tokens}",
            f"texts are cut at {tokens} tokens, special tokens included",
            _longest(tokens),
            "https://github.com/huggingface/text-embeddings-inference/issues/146" if tokens == 256 else None,
        )
        for tokens in (64, 128, 256, 384, 510, 511, 512)
    ),
    PipelineFault("truncated_left", "texts that are too long lose their beginning, not their end", {"cut": "left"}),
    PipelineFault("truncated_with_end", "rows are cut after </s> was added, so that it is lost", {"cut": "row"}),
    PipelineFault(
        "truncated_before_specials",
        "texts are cut to the limit before <s> and </s> are added: two tokens too many stay",
        {"cut": "before specials"},
    ),
)

ENCODER_FAULTS = (
    PipelineFault(
        "attention_mask_not_passed",
        "no attention mask is used, in the attention or in the pooling: padding is read as text",
        _encoder("mask_missing", tokens="all"),
    ),
    PipelineFault(
        "full_padding_attended",
        "rows are padded to one width, 512 or the model's limit, and the padding is attended to",
        _encoder("mask_missing", padding="full"),
    ),
    PipelineFault(
        "left_padding_counted",
        "rows are padded on the left, and positions count the padding",
        _encoder("positions_count_padding", padding="left"),
        "https://github.com/huggingface/transformers/pull/1764",
    ),
    PipelineFault("weights_float16", "the weights were rounded to float16", {"weights": "float16"}, rounding=True),
    PipelineFault("weights_bfloat16", "the weights were rounded to bfloat16", {"weights": "bfloat16"}, rounding=True),
    PipelineFault(
        "weights_int8", "the weights were rounded to int8, 32 to a scale", {"weights": "int8"}, rounding=True
    ),
    PipelineFault(
        "weights_4_bits", "the weights were rounded to 4 bits, 32 to a scale", {"weights": "4 bits"}, rounding=True
    ),
)


def _pooling(name: str, pooling: str, cause: str, thread: str | None = None) -> PipelineFault:
    return PipelineFault(name, cause, {"pooling": (pooling,)}, thread, "embedding")


VECTOR_FAULTS = (
    _pooling(
        "pooled_mean",
        "mean",
        "the mean of the tokens is taken, which the checkpoint does not say",
        "https://github.com/Blaizzy/mlx-embeddings/pull/63",
    ),
    _pooling(
        "pooled_first",
        "cls",
        "the vector of <s> is taken, which the checkpoint does not say",
        "https://github.com/qdrant/fastembed/issues/384",
    ),
    _pooling(
        "pooled_last",
        "last",
        "the last token is taken, as for a decoder",
        "https://github.com/sgl-project/sglang/pull/4887",
    ),
    _pooling("pooled_max", "max", "the largest value of each feature is taken, which the checkpoint does not say"),
    _pooling("pooled_mean_sqrt_len", "mean_sqrt_len", "the sum is divided by the square root of the number of tokens"),
    PipelineFault(
        "pooled_last_place",
        "the last place of the batch is taken, which is padding in all but the longest row",
        {"pooling": ("last",), "tokens": "all"},
        kind="embedding",
    ),
    PipelineFault(
        "pooled_over_padding",
        "padding is pooled as if it were text",
        {"tokens": "all"},
        kind="embedding",
    ),
    PipelineFault(
        "pooled_over_full_padding",
        "rows are padded to one width, 512 or the model's limit, and the padding is pooled",
        {"tokens": "all", "padding": "full"},
        kind="embedding",
    ),
    PipelineFault(
        "pooled_by_batch_length",
        "the sum of the tokens is divided by the width of the batch",
        {"tokens": "sum over width"},
        kind="embedding",
    ),
    PipelineFault(
        "pooled_without_specials", "<s> and </s> are left out of the pooling", {"tokens": "text"}, kind="embedding"
    ),
    PipelineFault(
        "normalized_before_pooling",
        "the vectors of the tokens are brought to length 1 before they are pooled",
        {"normalize_tokens": True},
        kind="embedding",
    ),
    PipelineFault("not_normalized", "the vector is not brought to length 1", {"normalize": False}, kind="embedding"),
    PipelineFault(
        "normalized",
        "the vector is brought to length 1, which the checkpoint does not say",
        {"normalize": True},
        kind="embedding",
    ),
    PipelineFault(
        "cut_not_renormalized",
        "the vector is cut (Matryoshka) after it was brought to length 1, and not brought to length 1 again",
        {"cut_after_normalize": True},
        kind="embedding",
    ),
    *(
        PipelineFault(
            f"vectors_{to.replace(' ', '_')}",
            f"the numbers of the result were rounded to {to}",
            {"rounding": to},
            kind="embedding" if to in ("int8", "4 bits") else None,  # a scale for each row: one number stays as it is
            rounding=True,
        )
        for to in ("float16", "bfloat16", "int8", "4 bits", "4 decimals", "6 decimals")
    ),
)

SCORE_FAULTS = (
    PipelineFault(
        "activation_missing",
        "the logit is returned: no sigmoid or softmax is applied",
        {"activations": ()},
        "https://github.com/FlagOpen/FlagEmbedding/issues/503",
        "score",
    ),
    PipelineFault(
        "sigmoid",
        "sigmoid is applied, which the checkpoint does not say",
        {"activations": ("sigmoid",)},
        "https://github.com/netease-youdao/BCEmbedding/issues/15",
        "score",
    ),
    PipelineFault(
        "sigmoid_twice",
        "sigmoid is applied twice: scores lie between 0.5 and 0.731",
        {"activations": ("sigmoid", "sigmoid")},
        "https://github.com/withcatai/node-llama-cpp/issues/617",
        "score",
    ),
    PipelineFault(
        "softmax",
        "softmax over the labels is applied, which the checkpoint does not say",
        {"activations": ("softmax",)},
        kind="score",
    ),
    PipelineFault(
        "softmax_over_batch",
        "softmax goes over the texts that were sent together",
        {"activations": ("softmax over the batch",)},
        kind="score",
    ),
)

PIPELINE_FAULTS: tuple[PipelineFault, ...] = (
    *TEXT_FAULTS,
    *ID_FAULTS,
    *ENCODER_FAULTS,
    *VECTOR_FAULTS,
    *SCORE_FAULTS,
)


def faults_for(pipeline: Pipeline) -> tuple[PipelineFault, ...]:
    """The faults that change the steps of this checkpoint: those of its pipeline, then those of its encoder."""
    prompts = [
        PipelineFault(
            f"prompt_{number}_of_checkpoint",
            f"the checkpoint's prompt {prompt!r} is put before the text in place of {pipeline.right.prompt!r}",
            {"prompt": prompt},
        )
        for number, prompt in enumerate(pipeline.prompts, start=1)
        if prompt not in ("", "query: ", "passage: ")
    ]
    encoder = [
        PipelineFault(fault.name, fault.cause, _encoder(fault.name))
        for fault in FAULTS
        if fault.shows == "outputs" and not fault.tap.startswith(HEADS)
        if fault.name not in ("dropout_left_on", "weights_float16")  # one is drawn at random, one is above
        if pipeline.kind == "score" or not fault.tap.startswith("classifier.")
    ]
    faults = [fault for fault in (*PIPELINE_FAULTS, *prompts) if fault.kind in (None, pipeline.kind)]
    return tuple(fault for fault in (*faults, *encoder) if fault.made(pipeline.right) != pipeline.right)


def encoder_fault(fault: Fault) -> PipelineFault:
    """A fault of the encoder that is in no list."""
    return PipelineFault(fault.name, "one operation of the encoder is another", _encoder(fault))


def with_faults(pipeline: Pipeline, faults: Sequence[PipelineFault]) -> Pipeline:
    """The pipeline with the faults in what it takes for right, so that only other faults show."""
    right = pipeline.right
    for fault in faults:
        right = fault.made(right)
    return replace(pipeline, right=right)
