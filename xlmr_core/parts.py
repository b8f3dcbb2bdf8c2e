"""The parts of a model of any class."""

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
