"""Path patching: no path gives the corrupted run, all paths give activation patching, and each step is what it says."""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM
from xlmr_core.interpret import activation_patching, head_parts, path_patching

CLEAN = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 11, 12, 13, 2, 1, 1]])
CORRUPTED = torch.tensor([[0, 5, 20, 7, 8, 21, 2], [0, 11, 30, 13, 2, 1, 1]])
PAIR = ({"input_ids": CLEAN}, {"input_ids": CORRUPTED})
ALL = torch.ones(1, 1, 1, dtype=torch.bool)
CONFIGS = pytest.mark.parametrize("norm", reference.CONFIGS)


def build(norm: str = "post-norm") -> Any:
    model: Any = XLMRobertaForMaskedLM(reference.CONFIGS[norm]).double().eval()
    reference.randomize(model)
    return model


def score(output: Any) -> Tensor:
    return output.logits[:, 3, 17] - output.logits[:, 3, 18]


@CONFIGS
def test_nothing_sent_is_the_corrupted_run(norm: str) -> None:
    found = path_patching(
        build(norm),
        *PAIR,
        score,
        sender="layers.0.attention.context",
        parts=~ALL,
        receivers=["layers.2.attention.q", "layers.2.attention.k"],
    )
    assert found.abs().max() < 1e-12


@CONFIGS
def test_everything_sent_on_all_paths_is_the_clean_run(norm: str) -> None:
    model = build(norm)
    found = path_patching(
        model, *PAIR, score, sender="embeddings.output", parts=ALL, receivers=["layers.-1.output"], frozen=[]
    )
    with torch.no_grad():
        expected = score(model(CLEAN)) - score(model(CORRUPTED))
    assert (found[0] - expected).abs().max() < 1e-12


@CONFIGS
def test_heads_on_all_paths_are_activation_patching(norm: str) -> None:
    model, parts = build(norm), head_parts(reference.POST_NORM)
    found = path_patching(
        model, *PAIR, score, sender="layers.0.attention.context", parts=parts, receivers=["layers.-1.output"], frozen=[]
    )
    assert found.shape == (4, 2)
    expected = activation_patching(model, *PAIR, score, "layers.0.attention.context", parts)[0]
    assert (found - expected).abs().max() < 1e-12


@CONFIGS
def test_one_head_to_the_queries_of_another_step_by_step(norm: str) -> None:
    model, sender, receiver = build(norm), "layers.0.attention.context", "layers.2.attention.q"
    found = path_patching(
        model,
        *PAIR,
        score,
        sender=sender,
        parts=head_parts(reference.POST_NORM)[1:2],
        receivers=[receiver],
        receiver_part=head_parts(reference.POST_NORM)[3:4],
    )
    with torch.no_grad():
        with model.capture(sender) as clean:
            model(CLEAN)
        with model.capture("layers.1.attention.context", receiver) as corrupted:
            before = score(model(CORRUPTED))

        def send(old: Tensor) -> Tensor:
            return torch.cat([old[..., :6], clean[sender][..., 6:12], old[..., 12:]], dim=-1)

        held = {"layers.1.attention.context": lambda _: corrupted["layers.1.attention.context"]}
        with model.intervene({sender: send, **held}), model.capture(receiver) as heard:
            model(CORRUPTED)
        with model.intervene({receiver: lambda old: torch.cat([old[..., :18], heard[receiver][..., 18:]], dim=-1)}):
            expected = score(model(CORRUPTED)) - before
    assert (found[0] - expected).abs().max() < 1e-12
    assert found.abs().min() > 1e-6


def test_with_everything_frozen_only_the_residual_connection_is_left() -> None:
    """Pre-norm: what the sender adds reaches the last layer's output unchanged."""
    model = build("pre-norm")
    with torch.no_grad(), model.capture("layers.0.attention.output") as clean:
        model(CLEAN)
    with torch.no_grad(), model.capture("layers.0.attention.output", "layers.-1.output") as corrupted:
        model(CORRUPTED)
    moved = clean["layers.0.attention.output"] - corrupted["layers.0.attention.output"]
    expected = model.encoder.final_norm(corrupted["layers.-1.output"] + moved) - model.encoder.final_norm(
        corrupted["layers.-1.output"]
    )
    found = path_patching(
        model,
        *PAIR,
        lambda output: output.last_hidden_state[:, 3, 5],
        sender="layers.0.attention.output",
        parts=ALL,
        receivers=["layers.-1.output"],
        frozen=["layers.*.attention.context", "layers.*.feed_forward.output"],
    )
    assert (found[0] - expected[:, 3, 5]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sender": "layers.*.attention.context"}, "must be one tap.*matches 3"),
        ({"receivers": ["layers.2.attention.context"]}, "is frozen"),
        ({"receivers": ["layers.0.attention.q"]}, "does not come after the sender"),
        ({"receiver_part": torch.ones(1, 1, 5, dtype=torch.bool)}, "parts must be boolean"),
        ({"parts": torch.ones(1, 1, 5, dtype=torch.bool)}, "parts must be boolean"),
    ],
)
def test_errors(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "sender": "layers.1.attention.context",
        "parts": ALL,
        "receivers": ["layers.2.attention.q"],
    }
    with pytest.raises(ValueError, match=message):
        path_patching(build(), *PAIR, score, **given | changed)


def test_a_string_for_the_receivers() -> None:
    with pytest.raises(TypeError, match="lists of patterns"):
        path_patching(build(), *PAIR, score, sender="layers.0.mid", parts=ALL, receivers="layers.-1.output")
