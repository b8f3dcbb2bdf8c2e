"""What the grammar says each tap is, is what the model computes there."""

import pytest
import reference
import torch

from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.grammar.evaluate import Recorded
from xlmr_core.parity.grammar.terms import in_layer, tap, terms_of, weights_of
from xlmr_core.parity.tap_values import one_mask
from xlmr_core.parity.variants import variant

CASES = [("pre-norm", "lm_head"), *(("post-norm", head) for head in ("lm_head", *reference.HEADED))]


@pytest.mark.parametrize(("norm", "head"), CASES)
def test_the_term_of_every_tap_gives_the_tap(norm: str, head: str) -> None:
    pair = reference.build_pair_with(reference.CONFIGS[norm], head)
    model = variant(pair.ours, torch.float64, "eager", "cpu")
    taps, terms = dump_of(model, pair.batch), terms_of(model)
    scene = Recorded(
        terms,
        taps,
        weights=weights_of(model),
        heads=model.config.num_attention_heads,
        pad=model.config.pad_token_id,
        rows=len(pair.real),
    )
    scene.ids, scene.real = pair.batch["input_ids"], pair.real
    assert set(taps) <= set(terms)
    for name, expected in taps.items():
        found = one_mask(name, scene.evaluate(terms[name]))
        assert torch.allclose(found, one_mask(name, expected), rtol=0, atol=1e-12), name


def test_a_term_moves_to_another_layer() -> None:
    other = tap("layers.1.mid")
    assert str(in_layer(other, 2, 3, 4, relative=True)) == "layers.2.mid"
    assert str(in_layer(other, 2, 3, 4, relative=False)) == "layers.1.mid"
    assert in_layer(other, 2, 0, 4, relative=True) is None
    assert str(in_layer(tap("layers.1.mid"), 0, 3, 4, relative=True)) == "layers.0.mid"  # after the last, the first
