"""The key tables against transformers' own keys, and as a bijection."""

from dataclasses import replace

import pytest
import reference
import torch
from checkpoint import published

import xlmr_core
from xlmr_core.checkpoint.layouts import LAYOUTS, KeyLayout, expand, layout_for, nest
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel
from xlmr_core.spec import spec_of

OWN_CLASSES = [cls for name in xlmr_core.__all__ if hasattr(cls := getattr(xlmr_core, name), "spec")]
LAYOUT_NAMES = [layout.name for layout in LAYOUTS]


def config_for(layout: KeyLayout, *, tied: bool = True) -> XLMRobertaConfig:
    return replace(reference.POST_NORM, norm_first=layout.norm_first, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_NAMES)
def test_each_layout_is_a_bijection_onto_our_state_dicts(layout: KeyLayout, tied: bool) -> None:
    """For every class that the layout has the groups of: each tensor of ours has one place, each key one tensor."""
    config = config_for(layout, tied=tied)
    checked = 0
    for cls in OWN_CLASSES:
        wanted = cls.spec.required_names + cls.spec.optional_names
        slots = expand(layout, config, cls.spec)
        groups = {slot.group for slot in slots}
        if not set(wanted) - {"pooler"} <= groups:
            continue
        options = {"add_pooling_layer": "pooler" in groups} if cls is XLMRobertaModel else {}
        with torch.device("meta"):
            model = cls(config, **options)
        slots = [slot for slot in slots if slot.group in wanted]
        ours = [tensor for slot in slots for tensor in slot.ours]
        ours += [nest(tensor, "encoder", cls.spec) for tensor in layout.fills]
        theirs = [key for slot in slots for key in slot.keys]
        assert len(set(ours)) == len(ours)
        assert len(set(theirs)) == len(theirs)
        tied_away = {"lm_head.decoder.weight"} if tied else set()
        assert set(ours) == model.state_dict().keys() - tied_away
        checked += 1
    assert checked == {"hf": 7, "native": 7, "torchtext": 1}.get(layout.family.split("-")[0], 3)


def test_a_fused_tensor_is_ours_in_equal_parts() -> None:
    for layout in LAYOUTS:
        for slot in expand(layout, config_for(layout), XLMRobertaModel.spec):
            kinds = [name.rpartition(".")[2] for name in slot.ours]
            assert len(slot.ours) == 1 or [name.split(".")[-2] for name in slot.ours] == ["q_proj", "k_proj", "v_proj"]
            assert len(set(kinds)) == 1


def test_every_target_is_found_again() -> None:
    """`layout_for` gives each layout for the classes it is written for, and None where a format has no such model."""
    for layout in LAYOUTS:
        cls = XLMRobertaForMaskedLM if layout.with_prefix in (True, None) else XLMRobertaModel
        assert layout_for(layout.family, cls.spec, layout.norm_first) is layout
    assert layout_for("torchtext", XLMRobertaModel.spec, True) is None
    assert layout_for("fairseq-0.9", XLMRobertaModel.spec, True) is None
    post_norm, pre_norm = (layout_for("fairseq", XLMRobertaModel.spec, norm_first) for norm_first in (False, True))
    assert post_norm is not pre_norm


@pytest.mark.parametrize("kind", published.KINDS)
def test_the_tables_say_what_transformers_says(kind: str, models: dict) -> None:
    """Pairs, not sets of names: the tests' own table, and transformers' keys, which it must cover."""
    config, name = published.KINDS[kind]
    spec = getattr(xlmr_core, f"XLMRoberta{name}").spec
    layout = layout_for("hf", spec, config.norm_first)
    assert layout is not None
    slots = expand(layout, config, spec)
    known = spec.required_names + spec.optional_names
    assert {slot.ours[0]: next(iter(slot.keys)) for slot in slots if slot.group in known} == published.our_keys(kind)
    assert {key for slot in slots if slot.group in known for key in slot.keys if slot.keys[key] in known} == (
        models[kind].state_dict().keys()
    )


def test_no_layout_fits_in_another() -> None:
    """Detection takes the one layout whose encoder is all there, so none may be part of another."""
    encoders = [
        {
            next(iter(slot.keys))
            for slot in expand(layout, config_for(layout), XLMRobertaModel.spec)
            if slot.group == "encoder"
        }
        for layout in LAYOUTS
    ]
    for i, first in enumerate(encoders):
        for second in encoders[i + 1 :]:
            assert not first <= second
            assert not second <= first


def test_a_layer_number_is_written_out_in_full() -> None:
    """Twelve layers: layer 1 and layer 11 stay apart."""
    config = replace(reference.POST_NORM, num_hidden_layers=12)
    slots = expand(LAYOUTS[0], config, XLMRobertaModel.spec)
    pairs = {slot.ours[0]: next(iter(slot.keys)) for slot in slots}
    assert pairs["layers.11.attention.q_proj.bias"] == "roberta.encoder.layer.11.attention.self.query.bias"
    assert pairs["layers.1.attention.q_proj.bias"] == "roberta.encoder.layer.1.attention.self.query.bias"


def test_a_subclass_needs_what_its_parent_needs() -> None:
    class Mine(XLMRobertaForMaskedLM):
        pass

    assert spec_of(Mine) is XLMRobertaForMaskedLM.spec
    with pytest.raises(TypeError, match="Linear has no spec"):
        spec_of(torch.nn.Linear)
