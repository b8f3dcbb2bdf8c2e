"""The key tables against transformers' own keys, and as a bijection."""

from dataclasses import replace

import pytest
import reference
import torch
from checkpoint import published

from xlmr_core.checkpoint.layouts import LAYOUTS, NEEDS, Layout, expand, needs_of
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel

LAYOUT_NAMES = [layout.name for layout in LAYOUTS]


def config_for(layout: Layout, *, tied: bool = True) -> XLMRobertaConfig:
    return replace(reference.POST_NORM, norm_first=layout.norm_first, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_NAMES)
def test_each_layout_is_a_bijection_onto_our_state_dicts(layout: Layout, tied: bool) -> None:
    config = config_for(layout, tied=tied)
    with torch.device("meta"):
        lm, encoder = XLMRobertaForMaskedLM(config), XLMRobertaModel(config, add_pooling_layer=True)
    slots = expand(layout, config, NEEDS["XLMRobertaForMaskedLM"].nested)
    ours = [slot.ours for slot in slots]
    theirs = [key for slot in slots for key in slot.keys]
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)
    tied_away = {"lm_head.decoder.weight"} if tied else set()
    assert (
        set(ours) - {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"} == lm.state_dict().keys() - tied_away
    )

    bare = expand(layout, config, NEEDS["XLMRobertaModel"].nested)
    assert {slot.ours for slot in bare if slot.group != "lm_head"} == encoder.state_dict().keys()


@pytest.mark.parametrize("kind", published.KINDS)
def test_the_tables_say_what_transformers_says(kind: str, models: dict) -> None:
    """Pairs, not sets of names: the tests' own table, and transformers' keys, which it must cover."""
    config, name = published.KINDS[kind]
    needs = NEEDS["XLMRobertaModel" if name == "Model" else "XLMRobertaForMaskedLM"]
    slots = expand(needs.layouts[config.norm_first], config, needs.nested)
    known = needs.required + needs.optional
    assert {slot.ours: next(iter(slot.keys)) for slot in slots if slot.group in known} == published.our_keys(kind)
    assert {key for slot in slots if slot.group in known for key in slot.keys if slot.keys[key] in known} == (
        models[kind].state_dict().keys()
    )


def test_no_layout_fits_in_another() -> None:
    """Detection takes the one layout whose encoder is all there, so none may be part of another."""
    encoders = [
        {next(iter(slot.keys)) for slot in expand(layout, config_for(layout), ()) if slot.group == "encoder"}
        for layout in LAYOUTS
    ]
    for i, first in enumerate(encoders):
        for second in encoders[i + 1 :]:
            assert not first <= second
            assert not second <= first


def test_a_layer_number_is_written_out_in_full() -> None:
    """Twelve layers: layer 1 and layer 11 stay apart."""
    config = replace(reference.POST_NORM, num_hidden_layers=12)
    slots = expand(LAYOUTS[0], config, ())
    pairs = {slot.ours: next(iter(slot.keys)) for slot in slots}
    assert pairs["layers.11.attention.q_proj.bias"] == "roberta.encoder.layer.11.attention.self.query.bias"
    assert pairs["layers.1.attention.q_proj.bias"] == "roberta.encoder.layer.1.attention.self.query.bias"


def test_a_subclass_needs_what_its_parent_needs() -> None:
    class Mine(XLMRobertaForMaskedLM):
        pass

    assert needs_of(Mine) is NEEDS["XLMRobertaForMaskedLM"]
    with pytest.raises(TypeError, match="Linear has no entry"):
        needs_of(torch.nn.Linear)
