"""Dumps without a map of names: taps recognised by numbers, and by names and order where a port is wrong."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from kit import numpy_port
from torch import Tensor

from xlmr_core import XLMRobertaConfig, XLMRobertaForMaskedLM
from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.cli import main
from xlmr_core.parity.adapters import dump_of
from xlmr_core.parity.check import check_trace
from xlmr_core.parity.compare import Comparison
from xlmr_core.parity.faults import find_fault
from xlmr_core.parity.foreign import fitted, renamed
from xlmr_core.parity.matching import Matching, match_tensors
from xlmr_core.parity.name_map import as_names, summary, to_toml
from xlmr_core.parity.readings import Kind, kinds_of, readings
from xlmr_core.parity.recording import Checkpoint, record, record_model
from xlmr_core.parity.trace import Trace, TraceError

HEADS = 2
Change = Callable[[str, Tensor], Tensor]


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint: Path) -> Checkpoint:
    return Checkpoint.load(toy_checkpoint)


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, ["the cat sees the dog", "a bird", "the dog"], top_k=0)


@pytest.fixture(scope="module")
def saved(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matching") / "trace.safetensors"
    trace.save(path)
    return path


def anonymous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in their order, without names that mean anything."""
    return {f"t{index}": tensor for index, tensor in enumerate(tensors.values())}


def compared(trace: Trace, dump: Mapping[str, Tensor], matching: Matching) -> Comparison:
    """With the trace, through the map of names that the matching gives."""
    ours = renamed(dump, as_names(matching), trace.config, tokens=trace.real.shape)
    ours = {name: tensor for name, tensor in ours.items() if name in trace.tensors}
    ours = fitted(ours, trace.tensors, trace.config, trace.real)
    return check_trace(trace, ours, floors=None, partial=True)


# ---- right ports -----------------------------------------------------------------------------------------------------


def by_head(tap: str, tensor: Tensor) -> Tensor:
    return tensor.unflatten(2, (HEADS, -1)) if tap.endswith((".q", ".k", ".v", ".context")) else tensor


def heads_first(tap: str, tensor: Tensor) -> Tensor:
    return tensor.unflatten(2, (HEADS, -1)).permute(2, 0, 1, 3) if tap.endswith((".q", ".k", ".v")) else tensor


def tokens_first(tap: str, tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor


def queries_first(tap: str, tensor: Tensor) -> Tensor:
    return tensor.permute(2, 0, 3, 1) if tensor.dim() == 4 else tensor


def rows_merged(tap: str, tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)


def transposed(tap: str, tensor: Tensor) -> Tensor:
    return tensor.permute(*reversed(range(tensor.dim())))


def interleaved(tap: str, tensor: Tensor) -> Tensor:
    """Heads within features."""
    return tensor.unflatten(2, (HEADS, -1)).transpose(2, 3).flatten(2) if tap.endswith(".context") else tensor


@pytest.mark.parametrize(
    "change", [by_head, heads_first, tokens_first, queries_first, rows_merged, transposed, interleaved]
)
def test_any_order_of_axes_is_recognised(trace: Trace, change: Change) -> None:
    dump = anonymous({tap: change(tap, tensor).contiguous() for tap, tensor in trace.tensors.items()})
    matching = match_tensors(trace, dump)
    assert (matching.absent, matching.unknown) == ((), ())
    assert all(match.how == "by numbers" for match in matching.matches)
    assert compared(trace, dump, matching).ok


def test_a_packed_dump_is_recognised(trace: Trace) -> None:
    dump = anonymous(
        {tap: tensor if tensor.dim() == 4 else tensor[trace.real] for tap, tensor in trace.tensors.items()}
    )
    matching = match_tensors(trace, dump)
    assert not matching.unknown
    rows = compared(trace, dump, matching).rows
    assert len(rows) == len(trace.tensors)
    assert all(row.ok for row in rows)


@pytest.mark.parametrize("texts", [["the cat sees the dog"], ["the dog", "the cat"]])
@pytest.mark.parametrize("change", [tokens_first, heads_first, transposed])
def test_one_text_and_texts_without_padding(toy_checkpoint: Path, texts: list[str], change: Change) -> None:
    trace = record(toy_checkpoint, texts, top_k=0)
    dump = anonymous({tap: change(tap, tensor).contiguous() for tap, tensor in trace.tensors.items()})
    if len(texts) == 1:
        dump = {name: tensor.squeeze() for name, tensor in dump.items()}
    matching = match_tensors(trace, dump)
    assert not matching.unknown
    assert compared(trace, dump, matching).ok


FUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "parts first": (lambda q, k, v: torch.cat([q, k, v], -1), "B S (P H)"),
    "parts last": (lambda q, k, v: torch.stack([q, k, v], -1).flatten(2), "B S (H P)"),
    "by head": (lambda *three: torch.stack([x.unflatten(2, (HEADS, -1)) for x in three], 3).flatten(2), "B S (N P D)"),
    "own axis": (lambda q, k, v: torch.stack([q, k, v]), "P B S H"),
    "tokens first": (lambda q, k, v: torch.cat([q, k, v], -1).transpose(0, 1), "S B (P H)"),
}


@pytest.mark.parametrize("form", FUSED)
def test_queries_keys_and_values_in_one_tensor(trace: Trace, saved: Path, tmp_path: Path, form: str) -> None:
    fuse, axes = FUSED[form]
    dump = {f"x.{tap}": tensor for tap, tensor in trace.tensors.items() if not tap.endswith((".q", ".k", ".v"))}
    for i in range(2):
        dump[f"h.{i}.qkv"] = fuse(*(trace.tensors[f"layers.{i}.attention.{letter}"] for letter in "qkv"))
    matching = match_tensors(trace, dump)
    assert compared(trace, dump, matching).ok
    assert f'"layers.{{i}}.attention.k" = {{ name = "h.{{i}}.qkv", axes = "{axes}", part = 1 }}' in to_toml(
        matching, ""
    )
    np.savez(tmp_path / "port.npz", **{name: tensor.numpy() for name, tensor in dump.items()})
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact")
    assert result.exit_code == 0, result.output
    assert f"{len(trace.tensors)} of {len(trace.tensors)} taps were recognised" in result.output


@pytest.mark.parametrize("axis", [0, 1])
def test_all_layers_in_one_tensor(trace: Trace, axis: int) -> None:
    states = ["embeddings.output", "layers.0.output", "layers.1.output"]
    dump = {f"x.{tap}": tensor for tap, tensor in trace.tensors.items() if tap not in states}
    dump["states"] = torch.stack([trace.tensors[tap] for tap in states], axis)
    matching = match_tensors(trace, dump)
    axes = ("L B S H", "B L S H")[axis]
    assert as_names(matching)["layers.1.output"] == {"name": "states", "axes": axes, "first": 1}
    assert as_names(matching)["embeddings.output"] == {"name": "states", "axes": axes, "first": 0}
    assert f'"layers.{{i}}.output" = {{ name = "states", axes = "{axes}", first = 1 }}' in to_toml(matching, "")
    assert compared(trace, dump, matching).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(checkpoint: Checkpoint, trace: Trace, dtype: torch.dtype) -> None:
    narrow = record_model(checkpoint, trace.inputs, top_k=0, dtype=dtype)
    matching = match_tensors(trace, anonymous(narrow.tensors))
    assert [int(match.found.name[1:]) for match in matching.matches] == list(range(len(trace.tensors)))


def test_logits_are_recognised_by_the_largest(toy_checkpoint: Path) -> None:
    trace = record(toy_checkpoint, ["the cat sees the dog", "a bird"], top_k=5)
    whole = record(toy_checkpoint, ["the cat sees the dog", "a bird"], top_k=0)
    matching = match_tensors(trace, anonymous(whole.tensors))
    assert matching.matches[-1].tap == "lm_head.logits"
    assert matching.unknown == ()


def test_a_mask_may_be_written_in_any_way(trace: Trace) -> None:
    def masked(tap: str, tensor: Tensor, value: float) -> Tensor:
        hidden = ~trace.real[:, None, None, :]
        return tensor.masked_fill(hidden, value) if tap.endswith("scores") else tensor

    for value in (-1e4, -torch.inf, -1e9):
        dump = anonymous({tap: masked(tap, tensor, value) for tap, tensor in trace.tensors.items()})
        assert match_tensors(trace, dump).unknown == ()


def test_what_is_merely_near_is_not_taken(trace: Trace) -> None:
    """A right port whose dump has products before their bias: nothing of it differs, so nothing may be reported."""
    near = ("attention.q", "feed_forward.pre")
    dump = {f"x.{tap}": tensor + 0.02 * tensor.std() * tap.endswith(near) for tap, tensor in trace.tensors.items()}
    for i in range(2):
        scores = dump[f"x.layers.{i}.attention.scores"]
        dump[f"x.layers.{i}.attention.scores"] = scores.masked_fill(~trace.real[:, None, None, :], 1.0)
    matching = match_tensors(trace, dump)
    assert matching.unknown == ()
    assert {tap.split(".", 2)[2] for tap in matching.absent} == {*near, "attention.scores"}
    assert compared(trace, dump, matching).ok


def test_a_model_with_the_norms_before_the_sublayers() -> None:
    """Its `mid` equals `attention.residual`: one tensor is both."""
    torch.manual_seed(0)
    model = XLMRobertaForMaskedLM(
        XLMRobertaConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
            max_position_embeddings=20, initializer_range=0.3, norm_first=True,
        )
    )  # fmt: skip
    model.initialize()
    ids = torch.randint(5, 49, (2, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    trace = record_model(Checkpoint(model.eval(), "random", None), inputs, top_k=0)
    dump = {f"p{tap}": tensor for tap, tensor in trace.tensors.items() if not tap.endswith("mid")}
    matching = match_tensors(trace, dump)
    assert not matching.unknown
    assert compared(trace, dump, matching).ok


# ---- wrong ports -----------------------------------------------------------------------------------------------------

WRONG = [
    "positions_from_zero", "embedding_norm_missing", "q_k_swapped", "k_v_swapped", "mask_causal",
    "heads_interleaved", "scores_unscaled", "mask_missing", "softmax_over_queries", "attention_residual_missing",
    "gelu_tanh", "norm_before_residual", "lm_head_norm_missing",
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_port_is_located_as_with_a_map(trace: Trace, checkpoint: Checkpoint, name: str) -> None:
    with find_fault(name).applied(checkpoint.model):  # type: ignore[union-attr]
        wrong = dump_of(checkpoint.model, trace.inputs)
    expected = check_trace(trace, wrong, floors=None).first_divergence
    named = {tap.replace("layers.", "blk.").replace("feed_forward", "ffn"): wrong[tap] for tap in wrong}
    forms = [named, anonymous(wrong)] if "swapped" not in name else [named]  # numbers say that they are not swapped
    for dump in forms:
        dump = {name.replace("embeddings", "emb").replace("lm_head", "head"): tensor for name, tensor in dump.items()}
        matching = match_tensors(trace, dump)
        found = compared(trace, dump, matching).first_divergence
        assert expected is not None
        assert found is not None
        assert found.tap == expected.tap
        assert matching.unknown == ()


def test_a_wrong_port_whose_names_mean_nothing_is_not_called_right(
    trace: Trace, saved: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with find_fault("heads_interleaved").applied(checkpoint.model):  # type: ignore[union-attr]
        wrong = dump_of(checkpoint.model, trace.inputs)
    order = torch.randperm(len(wrong)).tolist()
    dump = {f"t{index}": list(wrong.values())[index].numpy() for index in order}
    np.savez(tmp_path / "port.npz", **dump)
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact")
    assert result.exit_code == 1
    assert "not recognised, so not in the dump, or wrong: layers.0.attention.scores" in result.output
    text = xlmr("match", saved, tmp_path / "port.npz").stdout
    assert "# Not recognised: not in the dump, or wrong:" in text
    assert parse_toml(text)["names"].keys() >= {"layers.0.attention.q"}


def test_exchanged_queries_and_keys_without_names_are_located_where_they_meet(
    trace: Trace, checkpoint: Checkpoint
) -> None:
    with find_fault("q_k_swapped").applied(checkpoint.model):  # type: ignore[union-attr]
        dump = anonymous(dump_of(checkpoint.model, trace.inputs))
    found = compared(trace, dump, match_tensors(trace, dump)).first_divergence
    assert found is not None
    assert found.tap == "layers.0.attention.scores"


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numpy_dump(trace: Trace, toy_checkpoint: Path) -> Callable[..., dict[str, np.ndarray]]:
    port = numpy_port.load(toy_checkpoint)
    ids, mask = (trace.inputs[name].numpy() for name in ("input_ids", "attention_mask"))
    return lambda *faults: numpy_port.forward(port, ids, mask, faults)


def test_the_commands_need_no_map(trace: Trace, saved: Path, toy_checkpoint: Path, tmp_path: Path, numpy_dump) -> None:  # type: ignore[no-untyped-def]
    dump = tmp_path / "port.npz"
    np.savez(dump, **numpy_dump())
    assert xlmr("floor", toy_checkpoint, saved, "--dtype", "float32").exit_code == 0
    result = xlmr("check", saved, dump)
    assert result.exit_code == 0, result.output
    assert "no map of names: 36 of 36 taps were recognised, 36 of them by numbers" in result.output
    np.savez(dump, **numpy_dump("gelu_tanh"))
    result = xlmr("diagnose", saved, dump, "--model", toy_checkpoint)
    assert result.exit_code == 1
    assert "gelu_tanh" in result.output
    assert "no map of names" in result.output

    names = tmp_path / "names.toml"
    result = xlmr("match", saved, dump, "-o", names)
    assert result.exit_code == 0, result.output
    assert "36 of 36 taps" in result.output
    again = xlmr("match", saved, dump, "-o", names)
    assert again.exit_code == 2
    result = xlmr("check", saved, dump, "--names", names)
    assert "first divergence: layers.0.feed_forward.post" in result.output
    assert xlmr("check", saved, dump, "--json").stdout.startswith("{")


@pytest.mark.parametrize("command", ["match", "names"])
def test_a_map_without_a_folder_is_refused_before_the_work(command: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = xlmr(command, saved, tmp_path / "file", "-o", tmp_path / "file" / "names.toml")
    assert result.exit_code == 2
    assert "is not a folder: make it first, or name another for names.toml" in " ".join(result.stderr.split())


def test_what_cannot_be_matched(saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "port.npz", a=np.ones((2, 3)), b=np.arange(5))
    result = xlmr("match", saved, tmp_path / "port.npz")
    assert result.exit_code == 1
    assert "no tensor of" in result.stderr
    (tmp_path / "port.bin").write_bytes(b"x")
    assert "is not a safetensors file" in xlmr("match", saved, tmp_path / "port.bin").stderr


def test_odd_tensors_do_no_harm(trace: Trace) -> None:
    shape = trace.tensors["embeddings.output"].shape
    odd = {
        "nan": torch.full(shape, torch.nan),
        "zero": torch.zeros(shape),
        "huge": torch.full(shape, 1e38),
        "ids": torch.ones(shape, dtype=torch.long),
        "number": torch.tensor(1.0),
        "{i}": torch.ones(shape),
        "ones": torch.ones([1] * 12),
    }
    matching = match_tensors(trace, odd | anonymous(trace.tensors))
    assert not matching.unknown
    assert not {match.found.name for match in matching.matches} & odd.keys()
    assert match_tensors(trace, odd).matches == ()


# ---- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"axes": "B S (P H)", "part": 3}, "part = 3 asks for entry 3 of 3"),
        ({"axes": "B S (P H"}, "parentheses without a partner"),
        ({"axes": "(B S) P H"}, "do not fit a tensor"),
        ({"axes": "B S (P P N D)"}, "a letter is there twice"),
        ({"axes": "B S (P D F N)"}, "ours are B S N D"),
        ({"axes": "B S (N D)"}, "cannot be an axis of"),
        ({"part": 1}, "means nothing without axes"),
        ({"axes": "B S (P H)", "part": -1}, "greater than or equal to 0"),
    ],
)
def test_axes_that_do_not_fit(trace: Trace, entry: dict[str, object], message: str) -> None:
    q = trace.tensors["layers.0.attention.q"]
    names = {"layers.{i}.attention.q": {"name": "qkv", **entry}}
    with pytest.raises(TraceError, match=message.replace("(", r"\(").replace(")", r"\)")):
        renamed({"qkv": torch.cat([q, q, q], -1)}, names, trace.config, tokens=trace.real.shape)


def test_readings_are_few_and_the_simplest_comes_first(trace: Trace) -> None:
    kind: Kind = next(kind for kind in kinds_of(trace) if "layers.0.attention.q" in kind.taps)
    texts, tokens = trace.real.shape
    assert [reading.axes for reading in readings((texts, tokens, 24), kind)] == ["B S H", "B S (D N)"]
    assert readings((texts, tokens, 25), kind) == []
    equal = replace(kind, sizes={**kind.sizes, "B": 2, "S": 2, "N": 2, "D": 2})
    assert len(readings((2, 2, 2, 2), equal)) <= 64


def test_the_summary_is_one_line(trace: Trace) -> None:
    dump = {f"x{tap}": tensor for tap, tensor in trace.tensors.items() if tap.startswith("layers.0")}
    text = summary(match_tensors(trace, dump))
    assert "\n" not in text
    assert "14 of 36 taps were recognised, 14 of them by numbers" in text
    assert "proved right by later taps: embeddings.word" in text
    assert "or wrong: layers.1.attention.q" in text
