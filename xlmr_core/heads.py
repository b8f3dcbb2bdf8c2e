"""What stands on top of the encoder: the masked-LM head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import AttentionKind, PretrainedModel, XLMRobertaModel


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

    logits: Tensor  # (B, S, V), or (K, V) for the K positions asked for
    last_hidden_state: Tensor  # (B, S, H)


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
        positions: Tensor | None = None,
    ) -> MaskedLMOutput:  # (B, S), (B, S), (B, S), (B, S), (B, S)
        """As `XLMRobertaModel.forward`, and logits.

        positions: boolean, True where logits are wanted; they come as (K, V), in reading order. 250,002 logits for
        every token of a batch are where memory goes: `positions=input_ids == mask_id` asks for the masks alone.
        """
        hidden = self.encoder(input_ids, attention_mask, token_type_ids, position_ids).last_hidden_state
        if positions is None:
            return MaskedLMOutput(self.lm_head(hidden), hidden)
        if positions.shape != input_ids.shape or positions.dtype != torch.bool:
            raise ValueError(
                f"positions must be boolean with the shape of input_ids, {tuple(input_ids.shape)}, "
                f"not {positions.dtype} with shape {tuple(positions.shape)}"
            )
        return MaskedLMOutput(self.lm_head(hidden[positions]), hidden)
