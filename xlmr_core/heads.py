"""What stands on top of the encoder: the masked-LM head, classification, tagging, question answering, retrieval.

Letters, beside those of model.py: C classes (`config.num_labels`), K positions asked for, or the choices of a question.
Every class takes padded and packed batches, as `XLMRobertaModel` does; what each token has is then packed, too.
No class takes labels: a loss is one line of torch on the logits, and the reader's own choice.

Each class says in its `spec` what it adds to the encoder. Loading, taps and the parity kit read that and nothing else,
so a new head is one class: docs/add-a-head.md writes one.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.kernels import AttentionKind, first_token
from xlmr_core.model import XLMRobertaModel
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.spec import (
    CLASSES,
    COLBERT_LINEAR,
    LINEAR_CLASSIFIER,
    LM_HEAD,
    POOLER,
    QA_OUTPUTS,
    SEQUENCE_CLASSIFIER,
    SPARSE_LINEAR,
    ModelSpec,
    Tap,
)

UNK = 3  # <unk>, in every XLM-R vocabulary: config.json does not name it


class HeadInput(NamedTuple):
    """What a head may need to know of its batch beside the vectors."""

    input_ids: Tensor  # (*)
    attention_mask: Tensor | None  # (B, S)
    lengths: Tensor | None  # (B): of a packed batch, else None


class EncoderWithHead(PretrainedModel):
    """The encoder and something on top of it: a subclass has a `spec`, adds its modules and says what they compute."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention, add_pooling_layer=POOLER in self.spec.groups)
        self.add_head(config)

    def add_head(self, config: XLMRobertaConfig) -> None:
        """Makes the modules of the head."""
        raise NotImplementedError

    def head(self, hidden: Tensor, given: HeadInput) -> Any:  # (*, H)
        """The output of the class, from the encoder's vectors."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Any:  # (*), (B, S), (*), (*), (B)
        """As `XLMRobertaModel.forward`, and what the head makes of it."""
        encoded = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths)
        return self.head(encoded.last_hidden_state, HeadInput(input_ids, attention_mask, lengths))


def head_dropout(config: XLMRobertaConfig) -> nn.Dropout:
    """Dropout in a head: `classifier_dropout`, or where the config has none, that of the encoder."""
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


# ---- masked language model -------------------------------------------------------------------------------------------


class LMHead(nn.Module):
    """Vectors to vocabulary logits: dense, GELU, norm, and the word table again, with a bias of its own.

    The decoder's weight is the embedding table (Press and Wolf 2017); its bias is a separate vector of V numbers,
    the part that ports most often forget.
    """

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()  # exact, whatever hidden_act says: so in transformers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:  # (*, H) -> (*, V)
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


@dataclass(frozen=True)
class MaskedLMOutput:
    """The output of `XLMRobertaForMaskedLM`."""

    logits: Tensor  # (*, V), or (K, V) for the K positions asked for
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForMaskedLM(EncoderWithHead):
    """The encoder with the LM head: for each token, a logit for every entry of the vocabulary."""

    spec = ModelSpec(
        groups=(LM_HEAD,),
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
        """Makes decoder and word table one tensor again, where the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.decoder.weight = self.encoder.embeddings.word_embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> MaskedLMOutput:  # (*), (B, S), (*), (*), (B), (*)
        """As `XLMRobertaModel.forward`, and logits.

        positions: boolean, True where logits are wanted; they come as (K, V), in reading order. 250,002 logits for
        every token of a batch are where memory goes: `positions=input_ids == mask_id` asks for the masks alone.
        """
        encoded = self.encoder(input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths)
        hidden = encoded.last_hidden_state
        if positions is None:
            return MaskedLMOutput(self.lm_head(hidden), hidden)
        if positions.shape != input_ids.shape or positions.dtype != torch.bool:
            raise ValueError(
                f"positions must be boolean with the shape of input_ids, {tuple(input_ids.shape)}, "
                f"not {positions.dtype} with shape {tuple(positions.shape)}"
            )
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

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:  # (*, H), (B) -> (B, C)
        first = hidden[first_token(lengths)]
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(first)))))


@dataclass(frozen=True)
class SequenceClassifierOutput:
    """The output of `XLMRobertaForSequenceClassification`."""

    logits: Tensor  # (B, C)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForSequenceClassification(EncoderWithHead):
    """A label for a whole text or pair of texts; with one label a score, as in rerankers and regression."""

    spec = ModelSpec(
        groups=(SEQUENCE_CLASSIFIER,),
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

    def head(self, hidden: Tensor, given: HeadInput) -> SequenceClassifierOutput:  # (*, H)
        return SequenceClassifierOutput(self.classifier(hidden, given.lengths), hidden)


# ---- a label for each token ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenClassifierOutput:
    """The output of `XLMRobertaForTokenClassification`."""

    logits: Tensor  # (*, C)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForTokenClassification(EncoderWithHead):
    """A label for each token, padding included: named entities, parts of speech."""

    spec = ModelSpec(
        groups=(LINEAR_CLASSIFIER,),
        taps=(Tap("tagger.logits", "(*, C)", "a logit for each label of the token", "classifier"),),
        row_parameters=("classifier.weight", "classifier.bias"),
        transformers_name="ForTokenClassification",
        has_labels=True,
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.dropout = head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def head(self, hidden: Tensor, given: HeadInput) -> TokenClassifierOutput:  # (*, H)
        return TokenClassifierOutput(self.classifier(self.dropout(hidden)), hidden)


# ---- where the answer is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuestionAnsweringOutput:
    """The output of `XLMRobertaForQuestionAnswering`: how likely the answer starts at each token, or ends there."""

    start_logits: Tensor  # (*)
    end_logits: Tensor  # (*)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForQuestionAnswering(EncoderWithHead):
    """Where in a text the answer begins and ends (Devlin et al. 2019, section 4.2). No dropout in the head."""

    spec = ModelSpec(
        groups=(QA_OUTPUTS,),
        taps=(
            Tap("answer.logits", "(*, 2)", "whether the answer starts here, and whether it ends here", "qa_outputs"),
        ),
        row_parameters=("qa_outputs.",),
        transformers_name="ForQuestionAnswering",
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def head(self, hidden: Tensor, given: HeadInput) -> QuestionAnsweringOutput:  # (*, H)
        start, end = self.qa_outputs(hidden).unbind(-1)
        return QuestionAnsweringOutput(start, end, hidden)


# ---- which of several texts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MultipleChoiceOutput:
    """The output of `XLMRobertaForMultipleChoice`."""

    logits: Tensor  # (B, K)
    pooler_output: Tensor  # (B, K, H)


class XLMRobertaForMultipleChoice(EncoderWithHead):
    """Which of K texts fits: each is encoded alone, and its pooled vector gets one logit."""

    spec = ModelSpec(
        groups=(POOLER, LINEAR_CLASSIFIER),
        taps=(Tap("choice.logits", "(B, K, 1)", "a logit for each choice", "classifier"),),
        row_parameters=("classifier.weight", "classifier.bias"),
        transformers_name="ForMultipleChoice",
        has_choices=True,
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # never classifier_dropout: so in transformers
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> MultipleChoiceOutput:  # (*), (B, K, S), (*), (*), (B, K)
        """As `XLMRobertaModel.forward` on all K texts of every question, and a logit for each.

        Every padded input has the shape (B, K, S). Packed ones have (T), as elsewhere, and lengths (B, K).
        """
        given = (input_ids, attention_mask, token_type_ids, position_ids)
        if lengths is None:
            if input_ids.dim() != 3 or any(x is not None and x.shape != input_ids.shape for x in given):
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given if tensor is not None)
                raise ValueError(f"every input must have the shape (batch, choices, sequence), but they have {shapes}")
            rows = [tensor if tensor is None else tensor.flatten(0, 1) for tensor in given]
            pooled = self.encoder(*rows).pooler_output.unflatten(0, input_ids.shape[:2])
        else:
            if lengths.dim() != 2:
                raise ValueError(f"lengths must have the shape (batch, choices), not {tuple(lengths.shape)}")
            pooled = self.encoder(*given, lengths=lengths.flatten()).pooler_output.unflatten(0, lengths.shape)
        return MultipleChoiceOutput(self.classifier(self.dropout(pooled)).squeeze(-1), pooled)


# ---- retrieval -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class M3Output:
    """The output of `XLMRobertaForM3`: one text in three ways, ready to be compared by dot products."""

    dense: Tensor  # (B, H); the vector of <s>, of length 1
    sparse: Tensor  # (*); the weight of each token, 0 for special ones; of equal tokens the largest counts
    colbert: Tensor  # (*, H); a vector of length 1 for each token; 0 for <s> and for padding
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForM3(EncoderWithHead):
    """BGE-M3 (Chen et al. 2024, section 3.1): dense, sparse and multi-vector retrieval from one encoder."""

    spec = ModelSpec(
        groups=(SPARSE_LINEAR, COLBERT_LINEAR),
        taps=(
            Tap("sparse.weight", "(*, 1)", "before the ReLU, and of special tokens, too", "sparse_linear"),
            Tap("colbert.dense", "(*, H)", "before it is scaled to length 1", "colbert_linear"),
        ),
        row_parameters=("sparse_linear.",),
        transformers_name="Model",  # config.json of BGE-M3 says no more
    )

    def add_head(self, config: XLMRobertaConfig) -> None:
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.colbert_linear = nn.Linear(config.hidden_size, config.hidden_size)

    def head(self, hidden: Tensor, given: HeadInput) -> M3Output:  # (*, H)
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
