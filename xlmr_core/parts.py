"""The parts of a model of any class, and how it is run on texts."""

from typing import Any

from torch import Tensor, nn

from xlmr_core.model import XLMRobertaModel
from xlmr_core.pretrained import PretrainedModel


def encoder_of(model: PretrainedModel) -> XLMRobertaModel:
    """The encoder of a model with a head, or the model itself.

    Args:
        model: Of any class.

    Returns:
        The encoder, not a copy.
    """
    encoder = model if isinstance(model, XLMRobertaModel) else model.get_submodule("encoder")
    assert isinstance(encoder, XLMRobertaModel)
    return encoder


def run_on_texts(model: PretrainedModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[Any, Tensor]:
    """Runs a model on texts. Where it has choices, each text is a question with one: no operation reads two of them.

    Args:
        model: Of any class.
        input_ids: (B, S).
        attention_mask: (B, S).

    Returns:
        The output of the model, and the last hidden states (B, S, H), which not every output has.
    """
    hidden: list[Tensor] = []

    def keep(_encoder: nn.Module, _args: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)

    handle = encoder_of(model).register_forward_hook(keep)
    try:
        given = (input_ids, attention_mask)
        output = model(*(x[:, None] for x in given)) if model.spec.has_choices else model(*given)
    finally:
        handle.remove()
    return output, hidden[0]
