"""At the published sizes, bit for bit: the geometry of xlm-roberta-base and -large with random weights."""

import os
from collections.abc import Iterator

import pytest
import reference
import torch
from reference import Pair, awkward_batch

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.kernels import AttentionKind

pytestmark = pytest.mark.slow

BASE = XLMRobertaConfig()
LARGE = XLMRobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SIZES = {"base": BASE, "large": LARGE}


@pytest.fixture(autouse=True)
def _all_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


def build(config: XLMRobertaConfig, attention: AttentionKind) -> Pair:
    """Both models on the same memory: ours takes transformers' tensors over instead of copying 1 or 2 GB."""
    theirs = reference.build_reference(config, attention, "ForMaskedLM").eval()
    reference.randomize(theirs)
    source, keys = theirs.state_dict(), reference.masked_lm_keys(config)
    with torch.device("meta"):
        ours = XLMRobertaForMaskedLM(config, attention=attention).eval()
    ours.load_state_dict({name: source[key] for name, key in keys.items()}, assign=True)
    ours.tie_weights()
    return Pair(ours, theirs, config, awkward_batch(config))


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_hidden_states(config: XLMRobertaConfig, attention: AttentionKind) -> None:
    pair = build(config, attention)
    reference.check_outputs(pair)
    with torch.no_grad():
        logits = pair.ours(**pair.batch).logits[pair.real]
    assert logits.shape == (int(pair.real.sum()), 250002)
    assert logits.std() > 0.5
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_longest_sequence(attention: AttentionKind) -> None:
    """512 tokens beside a short row. Logits at a few positions: all of them would be 1 GB."""
    pair = build(BASE, attention)
    ids = torch.randint(3, BASE.vocab_size, (2, BASE.max_tokens))
    ids[1, 40:] = BASE.pad_token_id
    mask = (ids != BASE.pad_token_id).long()
    with torch.no_grad():
        ours = pair.ours.encoder(ids, mask).last_hidden_state
        theirs = pair.theirs.roberta(ids, mask).last_hidden_state
        assert torch.equal(ours[mask.bool()], theirs[mask.bool()])
        some = torch.zeros_like(mask, dtype=torch.bool)
        some[0, ::64] = some[1, 3] = True
        logits = pair.ours(ids, mask, positions=some).logits
        assert torch.equal(logits, pair.theirs.lm_head(theirs[some]))


def test_a_fault_is_seen_at_full_size() -> None:
    pair = build(BASE, "eager")
    pair.ours.encoder.layers[-1].attention_norm.eps = 1e-12
    with pytest.raises(AssertionError, match="layer 11 differs from transformers'"):
        reference.check_outputs(pair)
