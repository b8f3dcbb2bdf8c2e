"""Named internals: the table is the architecture, looking changes nothing, changing changes what it should."""

import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import reference
import torch
from reference import Pair
from torch import Tensor, nn

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaModel, heads
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.taps import Tap

CONFIGS = pytest.mark.parametrize("norm", reference.CONFIGS)
LETTERS = {"B": 5, "S": 11, "H": 24, "N": 4, "F": 40, "V": 53}


def pair_of(norm: str, dtype: torch.dtype = torch.float64) -> Pair:
    return reference.build_pair(reference.CONFIGS[norm], dtype=dtype)


def hooks_of(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from module._forward_hooks.values()
        yield from module._forward_pre_hooks.values()


@CONFIGS
def test_every_tap_is_what_the_plain_loops_compute_from_the_ones_before(norm: str) -> None:
    pair = pair_of(norm)
    with torch.no_grad(), pair.ours.capture("**") as acts:
        pair.ours(**pair.batch)
    truth = reference.oracle_taps(pair)
    assert [tap.name for tap in pair.ours.taps()] == list(truth)
    for name, expected in truth.items():
        ours = acts[name]
        if name.endswith("scores"):
            ours = ours.masked_fill(ours == torch.finfo(ours.dtype).min, -math.inf)
        if ours.dim() == 4:
            ours, expected = reference.by_query(ours), reference.by_query(expected)
        assert reference.gap(ours[pair.real], expected[pair.real]) <= reference.ORACLE_TOLERANCE, name


@CONFIGS
def test_shapes_are_as_the_table_says(norm: str) -> None:
    pair = pair_of(norm)
    with torch.no_grad(), pair.ours.capture("**") as acts:
        pair.ours(**pair.batch)
    for tap in pair.ours.taps():
        letters = tap.shape.replace("*", "B, S").strip("()").split(", ")
        assert acts[tap.name].shape == tuple(LETTERS[letter] for letter in letters), tap


def test_the_bare_encoder_has_the_same_taps_and_its_pooler() -> None:
    pair = reference.build_encoder_pair(reference.POST_NORM)
    names = [tap.name for tap in pair.ours.taps()]
    of_lm = [tap.name for tap in pair_of("post-norm").ours.taps() if not tap.name.startswith("lm_head")]
    assert names == [*of_lm, "pooler.dense", "pooler.output"]
    with torch.no_grad(), pair.ours.capture("pooler.*") as acts:
        output = pair.ours(**pair.batch)
    assert torch.equal(acts["pooler.output"], output.pooler_output)
    assert torch.equal(acts["pooler.dense"].tanh(), output.pooler_output)


HEADS: dict[type[PretrainedModel], dict[str, Callable[[Any, dict[str, Tensor]], Tensor]]] = {
    # Each tap above the encoder, by plain formulas from the ones before. L: the last layer's output.
    heads.XLMRobertaForSequenceClassification: {
        "classifier.dense": lambda m, acts: linear(acts["L"][:, 0], m.classifier.dense),
        "classifier.logits": lambda m, acts: linear(acts["classifier.dense"].tanh(), m.classifier.out_proj),
    },
    heads.XLMRobertaForTokenClassification: {"tagger.logits": lambda m, acts: linear(acts["L"], m.classifier)},
    heads.XLMRobertaForQuestionAnswering: {"answer.logits": lambda m, acts: linear(acts["L"], m.qa_outputs)},
    heads.XLMRobertaForMultipleChoice: {
        "pooler.dense": lambda m, acts: linear(acts["L"][:, 0], m.encoder.pooler.dense),
        "pooler.output": lambda m, acts: acts["pooler.dense"].tanh(),
        "choice.logits": lambda m, acts: linear(acts["pooler.output"], m.classifier).view(1, 5, 1),
    },
    heads.XLMRobertaForM3: {
        "sparse.weight": lambda m, acts: linear(acts["L"], m.sparse_linear),
        "colbert.dense": lambda m, acts: linear(acts["L"], m.colbert_linear),
    },
}


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    return (x[..., None, :] * module.weight).sum(dim=-1) + module.bias


@CONFIGS
@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_every_tap_of_a_head(norm: str, cls: type[Any]) -> None:
    config = replace(reference.CONFIGS[norm], labels=tuple("ABCDEFG"))
    model = cls(config).double().eval()
    reference.randomize(model)
    batch = reference.awkward_batch(config)
    if cls is heads.XLMRobertaForMultipleChoice:
        batch = {name: tensor[None] for name, tensor in batch.items()}
    with torch.no_grad(), model.capture("**") as acts:
        model(**batch)
    names = [tap.name for tap in model.taps()]
    assert names[-len(HEADS[cls]) :] == list(HEADS[cls])
    assert list(acts) == names
    last = {**acts, "L": acts["final_norm" if norm == "pre-norm" else "layers.2.output"]}
    letters = LETTERS | {"C": 7, "K": 5, "2": 2, "1": 1}
    for tap in model.taps()[-len(HEADS[cls]) :]:
        assert reference.gap(acts[tap.name], HEADS[cls][tap.name](model, last)) <= reference.ORACLE_TOLERANCE, tap
        shape = tuple(letters[letter] for letter in tap.shape.replace("*", "B, S").strip("()").split(", "))
        assert acts[tap.name].shape == ((1, *shape[1:]) if tap.name.startswith("choice") else shape), tap
    with torch.no_grad():
        before = model(**batch)
        with model.intervene({names[-1]: torch.zeros_like}):
            after = model(**batch)
    changed = [name for name, value in vars(before).items() if not torch.equal(value, vars(after)[name])]
    assert changed
    assert "last_hidden_state" not in changed
    assert not list(hooks_of(model))


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_changes_no_bit_and_leaves_nothing(norm: str, dtype: torch.dtype) -> None:
    pair = pair_of(norm, dtype)
    with torch.no_grad():
        before = pair.ours(**pair.batch).logits
        with pair.ours.capture("**"), pair.ours.intervene({"**": lambda tensor: tensor}):
            watched = pair.ours(**pair.batch).logits
    assert torch.equal(before, watched)
    assert not list(hooks_of(pair.ours))


def test_nothing_stays_after_an_error() -> None:
    pair = pair_of("post-norm")

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    breaking = pair.ours.intervene({"layers.1.mid": fails})
    with pytest.raises(RuntimeError, match="on purpose"), pair.ours.capture("**"), breaking:
        pair.ours(**pair.batch)
    assert not list(hooks_of(pair.ours))
    with pytest.raises(ValueError, match="no tap matches"), pair.ours.capture("layers.0.mid", "nothing"):
        pass
    assert not list(hooks_of(pair.ours))


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("layers.*.output", 3),  # and not layers.*.attention.output
        ("layers.*.attention.*", 3 * 8),
        ("layers.1.attention.[qkv]", 3),
        ("layers.-1.mid", 1),
        ("**.probs", 3),
        ("layers.1.**", 14),
        ("layers.-1.**.output", 3),  # of the layer, its attention and its feed-forward
        ("**.attention.**", 3 * 8),
        ("**", 5 + 3 * 14 + 3),
        ("**.nothing", 0),
        ("embeddings.*", 5),
        ("final_norm", 0),
        ("layers.3.output", 0),
        ("layers.-4.output", 0),
        ("*", 0),
        ("", 0),
    ],
)
def test_patterns(pattern: str, count: int) -> None:
    model = XLMRobertaForMaskedLM(reference.POST_NORM).eval()
    ids = torch.tensor([[0, 5, 6, 2]])
    if count == 0:
        with pytest.raises(ValueError, match="no tap matches"), model.capture(pattern):
            pass
        return
    with model.capture(pattern) as acts:
        model(ids)
    assert len(acts) == count


def test_an_unknown_tap_or_a_change_that_is_not_a_function_is_an_error() -> None:
    model = XLMRobertaForMaskedLM(reference.POST_NORM).eval()
    near, no_function = model.capture("layers.0.q"), model.intervene({"layers.0.mid": torch.zeros(1)})  # pyright: ignore
    with pytest.raises(ValueError, match=r"no tap matches 'layers\.0\.q'; .*layers\.0\."), near:
        pass
    with (
        pytest.raises(TypeError, match=r"at 'layers\.0\.mid' must be a function of the tensor there, not a Tensor"),
        no_function,
    ):
        pass


def test_a_tap_whose_module_is_absent_is_skipped_if_one_says_so() -> None:
    model = XLMRobertaForMaskedLM(reference.POST_NORM).eval()
    model.encoder.layers[1].attention.softmax = None  # pyright: ignore[reportAttributeAccessIssue]
    message = r"layers\.1\.attention\.scores is the input of the module encoder\.layers\.1\.attention\.softmax.*partial"
    with pytest.raises(ValueError, match=message), model.capture("**"):
        pass
    with model.capture("**", partial=True) as acts:
        pass
    assert acts.skipped == ("layers.1.attention.scores", "layers.1.attention.probs")
    with model.capture("layers.0.**", partial=True) as acts:
        pass
    assert acts.skipped == ()


def test_a_layer_counted_from_the_end_is_that_layer() -> None:
    model = XLMRobertaForMaskedLM(reference.POST_NORM).eval()
    with model.capture("layers.-1.mid") as acts:
        model(torch.tensor([[0, 5, 2]]))
    assert list(acts) == ["layers.2.mid"]


def test_fused_attention_has_no_scores_and_says_how_to_get_them() -> None:
    model = XLMRobertaModel(reference.POST_NORM, attention="sdpa").eval()
    for tap in ("scores", "probs"):
        asked = model.capture(f"layers.0.attention.{tap}")
        with pytest.raises(ValueError, match="load the model with attention='eager'"), asked:
            pass
    with model.capture("layers.*.attention.context") as acts:
        model(torch.tensor([[0, 5, 2]]))
    assert len(acts) == 3


@CONFIGS
def test_zeroing_a_head_is_zeroing_its_columns_of_out_proj(norm: str) -> None:
    pair = pair_of(norm)
    model, head_dim = pair.ours, pair.config.head_dim
    columns = slice(2 * head_dim, 3 * head_dim)

    def without_head_2(context: Tensor) -> Tensor:
        context = context.clone()
        context[..., columns] = 0
        return context

    with torch.no_grad():
        with model.intervene({"layers.1.attention.context": without_head_2}):
            ablated = model(**pair.batch).logits
        model.encoder.layers[1].attention.out_proj.weight[:, columns] = 0
        expected = model(**pair.batch).logits
    assert torch.equal(ablated, expected)


@CONFIGS
def test_a_change_at_mid_reaches_both_the_feed_forward_and_the_skip(norm: str) -> None:
    pair = pair_of(norm)
    model, layer = pair.ours, pair.ours.encoder.layers[2]
    new = torch.randn(5, 11, 24, dtype=torch.float64)
    with torch.no_grad(), model.capture("layers.2.output") as acts, model.intervene({"layers.2.mid": lambda _: new}):
        model(**pair.batch)
        if norm == "pre-norm":
            expected = new + layer.feed_forward(layer.feed_forward_norm(new))
        else:
            expected = layer.feed_forward_norm(new + layer.feed_forward(new))
    assert torch.equal(acts["layers.2.output"], expected)


@pytest.mark.parametrize("outer", ["capture", "intervene"])
@pytest.mark.parametrize("name", ["layers.0.attention.scores", "layers.0.attention.probs", "layers.1.output"])
def test_capture_sees_what_an_intervention_puts_in(outer: str, name: str) -> None:
    pair = pair_of("post-norm")
    model = pair.ours
    changes = {name: torch.ones_like}
    with torch.no_grad():
        if outer == "capture":
            with model.capture(name) as acts, model.intervene(changes):
                model(**pair.batch)
        else:
            with model.intervene(changes), model.capture(name) as acts:
                model(**pair.batch)
    assert (acts[name] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor[:, :-1], r"not shape \(5, 10, 24\)"),
        (lambda tensor: tensor.float(), "torch.float32"),
        (lambda _: None, "type NoneType"),
    ],
)
def test_an_intervention_may_not_change_shape_or_dtype(change: object, message: str) -> None:
    pair = pair_of("post-norm")
    with pytest.raises(ValueError, match=message), pair.ours.intervene({"layers.0.mid": change}):
        pair.ours(**pair.batch)


def test_gradients_flow_through_captured_tensors() -> None:
    pair = pair_of("post-norm")
    with pair.ours.capture("layers.0.attention.probs", "embeddings.word") as acts:
        loss = pair.ours(**pair.batch).logits[pair.real].square().sum()
    for gradient in torch.autograd.grad(loss, list(acts.values())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_swapping_a_tensor_between_two_inputs_carries_their_difference_over() -> None:
    """Activation patching: with the last layer's output of another input, the logits are that input's."""
    pair = pair_of("post-norm")
    other = {**pair.batch, "input_ids": pair.batch["input_ids"].roll(1, dims=1)}
    with torch.no_grad():
        with pair.ours.capture("layers.-1.output") as theirs:
            expected = pair.ours(**other).logits
        with pair.ours.intervene({"layers.-1.output": lambda _: theirs["layers.2.output"]}):
            patched = pair.ours(**pair.batch).logits
    assert torch.equal(patched, expected)


def test_the_table_can_be_read() -> None:
    taps = XLMRobertaForMaskedLM(reference.PRE_NORM).taps()
    assert Tap("layers.1.mid", "(B, S, H)", "the same: nothing normalises it here", "encoder.layers.1.mid") in taps
    assert len({tap.name for tap in taps}) == len(taps)
    assert all(tap.meaning for tap in taps)


def test_a_context_acts_only_in_its_own_thread() -> None:
    """Eight threads share a model. Each captures its own tensors, and no other thread's intervention reaches it."""
    pair = pair_of("post-norm")
    model, shared = pair.ours, pair.batch["input_ids"]
    inputs = [shared.masked_fill(shared == 7, 8 + number) for number in range(8)]
    with torch.no_grad():
        expected = [model(ids).logits for ids in inputs]
        with model.intervene({"layers.0.mid": torch.zeros_like}):
            ablated = model(inputs[0]).logits
    together = threading.Barrier(8)

    def work(number: int) -> list[str]:
        problems: list[str] = []
        with torch.no_grad():
            for _ in range(5):
                together.wait()
                with model.capture("lm_head.logits") as acts, ExitStack() as stack:
                    if number == 0:
                        stack.enter_context(model.intervene({"layers.0.mid": torch.zeros_like}))
                    together.wait()  # every context is open before any thread runs the model
                    logits = model(inputs[number]).logits
                    together.wait()  # every run is over before any context is closed
                wanted = ablated if number == 0 else expected[number]
                problems += [f"{number}: wrong logits"] * (not torch.equal(logits, wanted))
                problems += [f"{number}: wrong capture"] * (acts["lm_head.logits"] is not logits)
        return problems

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert [problem for problems in pool.map(work, range(8)) for problem in problems] == []
    assert not list(hooks_of(model))


def test_a_copy_made_inside_a_context_is_an_ordinary_model() -> None:
    pair = pair_of("post-norm")
    with torch.no_grad():
        expected = pair.ours(**pair.batch).logits
        names = ("embeddings.sum", "layers.0.mid")  # the input of a module, and the output of one
        with pair.ours.capture("**") as acts, pair.ours.intervene(dict.fromkeys(names, torch.zeros_like)):
            twin = copy.deepcopy(pair.ours)
            assert torch.equal(twin(**pair.batch).logits, expected)
        assert torch.equal(twin(**pair.batch).logits, expected)
    assert not acts


def test_a_captured_layer_may_be_counted_from_the_end() -> None:
    pair = reference.build_pair(reference.CONFIGS["post-norm"])
    with pair.ours.capture("layers.*.output") as acts:
        pair.ours(**pair.batch)
    assert acts["layers.-1.output"] is acts["layers.2.output"]
    with pytest.raises(KeyError, match=r"layers\.-1\.mid' was not captured; captured were"):
        acts["layers.-1.mid"]
    with pytest.raises(KeyError):
        acts["layers.*.output"]
