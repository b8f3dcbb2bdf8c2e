"""What stands on top of the encoder: the masked-LM head, classification, tagging, question answering, retrieval.

Letters, beside those of model.py: C classes (`config.num_labels`), K positions asked for, or the choices of a question.
Every class takes padded and packed batches, as `XLMRobertaModel` does; what each token has is then packed, too.
No class takes labels: a loss is one line of torch on the logits, and the reader's own choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import AttentionKind, XLMRobertaModel, first_places
from xlmr_core.pretrained import PretrainedModel

UNK = 3  # <unk>, in every XLM-R vocabulary: config.json does not name it


class LMHead(nn.Module):
    """Vectors to vocabulary logits: dense, GELU, norm, and the word table again, with a bias of its own.

    The decoder's weight is the embedding table (Press and Wolf 2017); its bias is a separate vector of V numbers,
    the part that ports most often forget.
    """

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.GELU()  # exact, whatever hidden_act says: so in the reference
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:  # (*, H) -> (*, V)
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


@dataclass(frozen=True)
class MaskedLMOutput:
    """What the masked language model gives back."""

    logits: Tensor  # (*, V), or (K, V) for the K positions asked for
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForMaskedLM(PretrainedModel):
    """The encoder with the LM head: for each token, a logit for every entry of the vocabulary."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention)
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
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths
        ).last_hidden_state
        if positions is None:
            return MaskedLMOutput(self.lm_head(hidden), hidden)
        if positions.shape != input_ids.shape or positions.dtype != torch.bool:
            raise ValueError(
                f"positions must be boolean with the shape of input_ids, {tuple(input_ids.shape)}, "
                f"not {positions.dtype} with shape {tuple(positions.shape)}"
            )
        return MaskedLMOutput(self.lm_head(hidden[positions]), hidden)


def _head_dropout(config: XLMRobertaConfig) -> nn.Dropout:
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


class ClassificationHead(nn.Module):
    """The vector of <s> to class logits (fairseq, RobertaClassificationHead)."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dropout = _head_dropout(config)  # twice: before each of the two linear maps
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor, lengths: Tensor | None) -> Tensor:  # (*, H), (B) -> (B, C)
        first = hidden[first_places(lengths)]
        return self.out_proj(self.dropout(self.activation(self.dense(self.dropout(first)))))


@dataclass(frozen=True)
class SequenceClassifierOutput:
    """What the sequence classifier gives back."""

    logits: Tensor  # (B, C)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForSequenceClassification(PretrainedModel):
    """A label for a whole text or pair of texts; with one label a score, as in rerankers and regression."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention)
        self.classifier = ClassificationHead(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> SequenceClassifierOutput:  # (*), (B, S), (*), (*), (B)
        """As `XLMRobertaModel.forward`, and logits, whose names are `config.labels`."""
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths
        ).last_hidden_state
        return SequenceClassifierOutput(self.classifier(hidden, lengths), hidden)


@dataclass(frozen=True)
class TokenClassifierOutput:
    """What the tagger gives back."""

    logits: Tensor  # (*, C)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForTokenClassification(PretrainedModel):
    """A label for each token: named entities, parts of speech."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention)
        self.dropout = _head_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> TokenClassifierOutput:  # (*), (B, S), (*), (*), (B)
        """As `XLMRobertaModel.forward`, and logits for every token, padding included."""
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths
        ).last_hidden_state
        return TokenClassifierOutput(self.classifier(self.dropout(hidden)), hidden)


@dataclass(frozen=True)
class QuestionAnsweringOutput:
    """What the question answerer gives back."""

    start_logits: Tensor  # (*)
    end_logits: Tensor  # (*)
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForQuestionAnswering(PretrainedModel):
    """Where in a text the answer begins and ends (Devlin et al. 2019, section 4.2). No dropout in the head."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> QuestionAnsweringOutput:  # (*), (B, S), (*), (*), (B)
        """As `XLMRobertaModel.forward`, and for every token how likely the answer starts there, or ends there."""
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths
        ).last_hidden_state
        start, end = self.qa_outputs(hidden).unbind(-1)
        return QuestionAnsweringOutput(start, end, hidden)


@dataclass(frozen=True)
class MultipleChoiceOutput:
    """What the chooser gives back."""

    logits: Tensor  # (B, K)
    pooler_output: Tensor  # (B, K, H)


class XLMRobertaForMultipleChoice(PretrainedModel):
    """Which of K texts fits: each is encoded alone, and its pooled vector gets one logit."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention, add_pooling_layer=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)  # never classifier_dropout: so in the reference
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
        if lengths is None and (
            input_ids.dim() != 3 or any(x is not None and x.shape != input_ids.shape for x in given)
        ):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given if tensor is not None)
            raise ValueError(f"every input must have the shape (batch, choices, sequence), but they have {shapes}")
        if lengths is not None and lengths.dim() != 2:
            raise ValueError(f"lengths must have the shape (batch, choices), not {tuple(lengths.shape)}")
        if lengths is None:
            rows = [tensor if tensor is None else tensor.flatten(0, 1) for tensor in given]
            pooled = self.encoder(*rows).pooler_output.unflatten(0, input_ids.shape[:2])
        else:
            pooled = self.encoder(*given, lengths=lengths.flatten()).pooler_output.unflatten(0, lengths.shape)
        return MultipleChoiceOutput(self.classifier(self.dropout(pooled)).squeeze(-1), pooled)


@dataclass(frozen=True)
class M3Output:
    """What BGE-M3 gives back: one text in three ways."""

    dense: Tensor  # (B, H); the vector of <s>, of length 1
    sparse: Tensor  # (*); the weight of each token, 0 for special ones; of equal tokens the largest counts
    colbert: Tensor  # (*, H); a vector of length 1 for each token; 0 for <s> and for padding
    last_hidden_state: Tensor  # (*, H)


class XLMRobertaForM3(PretrainedModel):
    """BGE-M3 (Chen et al. 2024, section 3.1): dense, sparse and multi-vector retrieval from one encoder."""

    def __init__(self, config: XLMRobertaConfig, *, attention: AttentionKind = "eager") -> None:
        super().__init__()
        self.config = config
        self.encoder = XLMRobertaModel(config, attention=attention)
        self.sparse_linear = nn.Linear(config.hidden_size, 1)
        self.colbert_linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> M3Output:  # (*), (B, S), (*), (*), (B)
        """As `XLMRobertaModel.forward`, and the three representations, ready to be compared by dot products."""
        hidden = self.encoder(
            input_ids, attention_mask, token_type_ids, position_ids, lengths=lengths
        ).last_hidden_state
        config = self.config
        real = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
        special = torch.tensor([config.bos_token_id, config.pad_token_id, config.eos_token_id, UNK])
        is_word = real & ~torch.isin(input_ids, special.to(input_ids))
        after_first = real.clone()
        after_first[first_places(lengths)] = False
        return M3Output(
            dense=F.normalize(hidden[first_places(lengths)], dim=-1),
            sparse=torch.relu(self.sparse_linear(hidden)).squeeze(-1) * is_word,
            colbert=F.normalize(self.colbert_linear(hidden), dim=-1) * after_first[..., None],
            last_hidden_state=hidden,
        )
