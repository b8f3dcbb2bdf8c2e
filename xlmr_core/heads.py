"""The heads on top of the encoder: masked LM, classification, tagging, question answering, multiple choice, retrieval.

Axes as in model.py. Every class takes padded and packed batches, as `XLMRobertaModel` does, and has packed output for a
packed batch. No class takes labels: a loss is one line of torch on the logits, and differs from use to use.

The `spec` of a class is the description of what it adds to the encoder. Loading, taps and the parity kit read only
that, so a new head is one class: docs/add-a-head.md writes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core import parameter_groups as groups
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.inputs import check_choices, check_positions
from xlmr_core.kernels import AttentionKind, first_token
from xlmr_core.model import XLMRobertaModel
from xlmr_core.pretrained import Output, PretrainedModel
from xlmr_core.spec import CLASSES, ModelSpec, Tap

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

UNK = 3  # <unk>, in every XLM-R vocabulary: config.json does not name it


class HeadInput(NamedTuple):
    """What a head may need of its batch beside the vectors; `lengths` is None in a padded batch."""

    input_ids: Int[Tensor, "*tokens"]
    attention_mask: Shaped[Tensor, "*tokens"] | None
    lengths: Int[Tensor, "batch"] | None


class EncoderWithHead(PretrainedModel[Output]):
    """The encoder with a head. A subclass has a `spec`, makes its modules and computes its output, an `Output`.

    Args:
        config: sizes and numerics.
        attention: the attention kernel, "eager" or "sdpa".
    """

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention, add_pooling_layer=groups.POOLER in self.spec.groups)
        self.add_head(config)

    def add_head(self, config: XLMRobertaConfig) -> None:
        """Makes the modules of the head."""
        raise NotImplementedError

    def head(self, hidden: Float[Tensor, "*tokens hidden"], given: HeadInput) -> Output:
        """The output of the class, computed from the encoder's vectors."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Int[Tensor, "*tokens"],
        attention_mask: Shaped[Tensor, "*tokens"] | None = None,
        token_type_ids: Int[Tensor, "*tokens"] | None = None,
        position_ids: Int[Tensor, "*tokens"] | None = None,
        *,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Output:
        """The output of the head; arguments and errors as those of `XLMRobertaModel.forward`."""
        encoded = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths)
        return self.head(encoded.last_hidden_state, HeadInput(input_ids, attention_mask, lengths))


def head_dropout(config: XLMRobertaConfig) -> nn.Dropout:
    """Dropout in a head: `classifier_dropout`, or the encoder's if the config has none."""
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


# ---- masked language model -------------------------------------------------------------------------------------------


class LMHead(nn.Module):
    """Vectors to vocabulary logits: dense, GELU, norm, and the word table again (fairseq, RobertaLMHead).

    The decoder's weight is the word table (Press and Wolf 2017). Its bias is a separate vector of V numbers, the part
    that ports most often forget.
    """

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()  # exact, whatever hidden_act is, as in transformers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


@dataclass(frozen=True)
class MaskedLMOutput:
    """The output of `XLMRobertaForMaskedLM`. `wanted` is `*tokens`, or the one axis of the positions asked for."""

    logits: Float[Tensor, "*wanted vocab"]
    last_hidden_state: Float[Tensor, "*tokens hidden"]


class XLMRobertaForMaskedLM(EncoderWithHead[MaskedLMOutput]):
    """The encoder with the LM head: a logit for every entry of the vocabulary, for each token."""

    spec = ModelSpec(
        groups=(groups.LM_HEAD,),
        taps=(
            Tap("lm_head.dense", "(*, H)", "before the head's GELU", "lm_head.dense"),
            Tap("lm_head.norm", "(*, H)", "what the word table is compared with", "lm_head.norm"),
            Tap("lm_head.logits", "(*, V)", "vocabulary logits; of the positions asked for, if any", "lm_head.decoder"),
        ),
        row_parameters=("lm_head.decoder.",),
        transformers_name="ForMaskedLM",
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.lm_head = LMHead(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Makes decoder and word table one tensor again, if the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.decoder.weight = self.encoder.embeddings.word_embeddings.weight

    def forward(
        self,
        input_ids: Int[Tensor, "*tokens"],
        attention_mask: Shaped[Tensor, "*tokens"] | None = None,
        token_type_ids: Int[Tensor, "*tokens"] | None = None,
        position_ids: Int[Tensor, "*tokens"] | None = None,
        *,
        lengths: Int[Tensor, "batch"] | None = None,
        positions: Bool[Tensor, "*tokens"] | None = None,
    ) -> MaskedLMOutput:
        """Vocabulary logits; other arguments and errors as those of `XLMRobertaModel.forward`.

        Args:
            positions: True where logits are wanted; by default everywhere. They come as (K, V), in reading order.
                250,002 logits for every token of a batch need much memory: `positions=input_ids == mask_id` computes
                those of the masks only.

        Raises:
            ValueError: `positions` is not boolean, or does not have the shape of `input_ids`.
        """
        check_positions(positions, input_ids)
        encoded = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths)
        hidden = encoded.last_hidden_state
        if positions is None:
            return MaskedLMOutput(self.lm_head(hidden), hidden)
        return MaskedLMOutput(self.lm_head(hidden[positions]), hidden)


# ---- a label for a text ----------------------------------------------------------------------------------------------


class ClassificationHead(nn.Module):
    """The vector of <s> to class logits (fairseq, RobertaClassificationHead)."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dropout = head_dropout(config)  # twice: before each of the two linear maps
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self, hidden: Float[Tensor, "*tokens hidden"], lengths: Int[Tensor, "batch"] | None
    ) -> Float[Tensor, "batch classes"]:
        first = hidden[first_token(lengths)]
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(first)))))


@dataclass(frozen=True)
class SequenceClassifierOutput:
    """The output of `XLMRobertaForSequenceClassification`."""

    logits: Float[Tensor, "batch classes"]
    last_hidden_state: Float[Tensor, "*tokens hidden"]


class XLMRobertaForSequenceClassification(EncoderWithHead[SequenceClassifierOutput]):
    """A logit for each label of a text or a pair of texts; one label is a score, as in rerankers and regression."""

    spec = ModelSpec(
        groups=(groups.SEQUENCE_CLASSIFIER,),
        taps=(
            Tap("classifier.dense", "(B, H)", "the first token through the head's map", "classifier.dense"),
            Tap("classifier.logits", "(B, C)", "a logit for each label of the text", "classifier.out_proj"),
        ),
        row_parameters=("classifier.out_proj.",),
        transformers_name="ForSequenceClassification",
        has_labels=True,
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.classifier = ClassificationHead(config)

    def head(self, hidden: Float[Tensor, "*tokens hidden"], given: HeadInput) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(self.classifier(hidden, given.lengths), hidden)


# ---- a label for each token ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenClassifierOutput:
    """The output of `XLMRobertaForTokenClassification`."""

    logits: Float[Tensor, "*tokens classes"]
    last_hidden_state: Float[Tensor, "*tokens hidden"]


class XLMRobertaForTokenClassification(EncoderWithHead[TokenClassifierOutput]):
    """A logit for each label of each token, padding included: named entities, parts of speech."""

    spec = ModelSpec(
        groups=(groups.LINEAR_CLASSIFIER,),
        taps=(Tap("tagger.logits", "(*, C)", "a logit for each label of the token", "classifier"),),
        row_parameters=("classifier.weight", "classifier.bias"),
        transformers_name="ForTokenClassification",
        has_labels=True,
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def head(self, hidden: Float[Tensor, "*tokens hidden"], given: HeadInput) -> TokenClassifierOutput:
        return TokenClassifierOutput(self.classifier(self.dropout(hidden)), hidden)


# ---- question answering ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionAnsweringOutput:
    """The output of `XLMRobertaForQuestionAnswering`: for each token, whether the answer starts or ends there."""

    start_logits: Float[Tensor, "*tokens"]
    end_logits: Float[Tensor, "*tokens"]
    last_hidden_state: Float[Tensor, "*tokens hidden"]


class XLMRobertaForQuestionAnswering(EncoderWithHead[QuestionAnsweringOutput]):
    """The first and the last token of an answer (Devlin et al. 2019, section 4.2). The head has no dropout."""

    spec = ModelSpec(
        groups=(groups.QA_OUTPUTS,),
        taps=(Tap("answer.logits", "(*, 2)", "whether the answer starts, or ends, at the token", "qa_outputs"),),
        row_parameters=("qa_outputs.",),
        transformers_name="ForQuestionAnswering",
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def head(self, hidden: Float[Tensor, "*tokens hidden"], given: HeadInput) -> QuestionAnsweringOutput:
        start, end = self.qa_outputs(hidden).unbind(-1)
        return QuestionAnsweringOutput(start, end, hidden)


# ---- multiple choice -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MultipleChoiceOutput:
    """The output of `XLMRobertaForMultipleChoice`."""

    logits: Float[Tensor, "batch choices"]
    pooler_output: Float[Tensor, "batch choices hidden"]


class XLMRobertaForMultipleChoice(EncoderWithHead[MultipleChoiceOutput]):
    """One logit for each of K texts: each text is encoded by itself, and its pooled vector is mapped to a logit."""

    spec = ModelSpec(
        groups=(groups.POOLER, groups.LINEAR_CLASSIFIER),
        taps=(Tap("choice.logits", "(B, K, 1)", "a logit for each choice", "classifier"),),
        row_parameters=("classifier.weight", "classifier.bias"),
        transformers_name="ForMultipleChoice",
        has_choices=True,
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # never classifier_dropout, as in transformers
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(
        self,
        input_ids: Int[Tensor, "*tokens"],
        attention_mask: Shaped[Tensor, "*tokens"] | None = None,
        token_type_ids: Int[Tensor, "*tokens"] | None = None,
        position_ids: Int[Tensor, "*tokens"] | None = None,
        *,
        lengths: Int[Tensor, "batch choices"] | None = None,
    ) -> MultipleChoiceOutput:
        """The logits of the K texts of every question; arguments and errors as those of `XLMRobertaModel.forward`.

        Args:
            input_ids: of shape (B, K, S) like the other padded arguments, or of shape (T,) in a packed batch.
            lengths: the number of tokens of each text of a packed batch.

        Raises:
            ValueError: an argument has another shape.
        """
        given = (input_ids, attention_mask, token_type_ids, position_ids)
        check_choices(given, lengths)
        rows = given if lengths is not None else [x if x is None else x.flatten(0, 1) for x in given]
        encoded = self.encoder(*rows, lengths=None if lengths is None else lengths.flatten())
        assert encoded.pooler_output is not None  # the spec has a pooler
        pooled = encoded.pooler_output.unflatten(0, (input_ids if lengths is None else lengths).shape[:2])
        return MultipleChoiceOutput(self.classifier(self.dropout(pooled)).squeeze(-1), pooled)


# ---- retrieval -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class M3Output:
    """The output of `XLMRobertaForM3`: three representations of a text, each compared by dot products.

    Args:
        dense: the vector of `<s>`, of length 1.
        sparse: the weight of each token, 0 for special ones; of equal tokens the largest counts.
        colbert: a vector of length 1 for each token; 0 for `<s>` and for padding.
        last_hidden_state: the encoder's vectors.
    """

    dense: Float[Tensor, "batch hidden"]
    sparse: Float[Tensor, "*tokens"]
    colbert: Float[Tensor, "*tokens hidden"]
    last_hidden_state: Float[Tensor, "*tokens hidden"]


class XLMRobertaForM3(EncoderWithHead[M3Output]):
    """BGE-M3 (Chen et al. 2024, section 3.1): dense, sparse and multi-vector retrieval from one encoder."""

    spec = ModelSpec(
        groups=(groups.SPARSE_LINEAR, groups.COLBERT_LINEAR),
        taps=(
            Tap("sparse.weight", "(*, 1)", "before the ReLU, and of special tokens, too", "sparse_linear"),
            Tap("colbert.dense", "(*, H)", "before it is scaled to length 1", "colbert_linear"),
        ),
        row_parameters=("sparse_linear.",),
        transformers_name="Model",  # that of the published config.json of BGE-M3
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.colbert_linear = nn.Linear(config.hidden_size, config.hidden_size)

    def head(self, hidden: Float[Tensor, "*tokens hidden"], given: HeadInput) -> M3Output:
        ids, config = given.input_ids, self.config
        real = ids != config.pad_token_id if given.attention_mask is None else given.attention_mask.bool()
        special = torch.tensor([config.bos_token_id, config.pad_token_id, config.eos_token_id, UNK])
        is_word = real & ~torch.isin(ids, special.to(ids))
        after_first = real.clone()
        after_first[first_token(given.lengths)] = False
        return M3Output(
            dense=F.normalize(hidden[first_token(given.lengths)], dim=-1),
            sparse=torch.relu(self.sparse_linear(hidden)).squeeze(-1) * is_word,
            colbert=F.normalize(self.colbert_linear(hidden), dim=-1) * after_first[..., None],
            last_hidden_state=hidden,
        )


def model_classes() -> list[type[PretrainedModel]]:
    """Every model class: the encoder, the classes above, and those that a caller has written."""
    return [cls for cls in CLASSES if issubclass(cls, PretrainedModel)]
