"""A map of names to fill in, and hints where the names or the axes of a dump do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from xlmr_core.checkpoint.toml import parse_toml
from xlmr_core.cli import main
from xlmr_core.parity.dump_files import shapes_in
from xlmr_core.parity.naming import axes_that_fit, template
from xlmr_core.parity.recording import record
from xlmr_core.parity.trace import Trace, TraceError

Q = "layers.0.attention.q"


def xlmr(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["parity", *map(str, arguments)])


@pytest.fixture(scope="module")
def trace(toy_checkpoint: Path) -> Trace:
    return record(toy_checkpoint, ["the cat sees the dog", "a bird", "the dog"])  # three texts, and two heads


@pytest.fixture(scope="module")
def saved(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("naming") / "trace.safetensors"
    trace.save(path)
    return path


def foreign(trace: Trace) -> dict[str, Any]:
    """The trace as a port would write it: other names, and queries, keys and values with the heads first."""
    heads = trace.config.num_attention_heads
    arrays: dict[str, Any] = {}
    for tap, tensor in trace.tensors.items():
        name = tap.replace("layers.", "blk.").replace("attention", "attn").replace("feed_forward", "feedfwd")
        name = name.replace("embeddings.", "emb_").replace("lm_head.", "cls.")
        is_by_head = name.endswith(("attn.q", "attn.k", "attn.v"))
        arrays[name] = (tensor.unflatten(2, (heads, -1)).permute(2, 0, 1, 3) if is_by_head else tensor).numpy()
    return arrays


def test_a_template_lists_every_tap_and_what_could_be_it(trace: Trace, saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "port.npz", **foreign(trace))
    made = xlmr("names", saved, tmp_path / "port.npz", "-o", tmp_path / "names.toml")
    assert made.exit_code == 0, made.output
    text = (tmp_path / "names.toml").read_text()
    assert parse_toml(text) == {"names": {}}
    order = 'axes = "N B S D"'
    assert f'# "layers.{{i}}.attention.q" = {{ name = "blk.{{i}}.attn.q", {order} }}  # ' in text
    lines = text.splitlines()
    uncommented = [
        line.removeprefix("# ")
        if before.startswith("# ") and not before.startswith('# "') and line[:3] == '# "'
        else line
        for before, line in zip(["", *lines], lines, strict=False)
    ]
    (tmp_path / "names.toml").write_text("\n".join(uncommented))
    kept = ["--taps", "embeddings.*", "--taps", "layers.**"]
    result = xlmr("check", saved, tmp_path / "port.npz", "--names", tmp_path / "names.toml", "--exact", *kept)
    assert result.exit_code == 0, result.output
    again = xlmr("names", saved, "-o", tmp_path / "names.toml")
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_a_dump_of_some_layers_is_offered_with_the_number_of_the_layer(
    trace: Trace, saved: Path, tmp_path: Path
) -> None:
    some = {name: array for name, array in foreign(trace).items() if not name.startswith("blk.1.")}
    np.savez(tmp_path / "port.npz", **some)
    made = xlmr("names", saved, tmp_path / "port.npz", "-o", tmp_path / "names.toml")
    assert made.exit_code == 0, made.output
    assert '# "layers.{i}.mid" = "blk.{i}.mid"  # ' in (tmp_path / "names.toml").read_text()


def test_a_template_without_a_dump_is_empty_entries(trace: Trace, saved: Path) -> None:
    text = xlmr("names", saved).stdout
    for tap in trace.taps:
        assert f'# "{tap.replace("layers.0.", "layers.{i}.").replace("layers.1.", "layers.{i}.")}" = ""' in text
    odd = template(trace, {'"quoted"\n': tuple(trace.tensors["embeddings.sum"].shape)}, "a test")
    assert parse_toml(odd) == {"names": {}}
    assert parse_toml(odd.replace('# "embeddings.sum"', '"embeddings.sum"')) == {
        "names": {"embeddings.sum": '"quoted"\n'}
    }


def test_names_that_are_not_ours_are_hinted_at(trace: Trace, saved: Path, tmp_path: Path) -> None:
    arrays = {name.removeprefix("blk.0."): array for name, array in foreign(trace).items()}
    np.savez(tmp_path / "port.npz", **arrays, **{Q: trace.tensors[Q].numpy()})
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact")
    assert result.exit_code == 1
    assert f"{len(trace.tensors) - 2} taps are missing ('embeddings.word', 'embeddings.token_type', " in result.stdout
    assert "tensors of the dump have no name of ours ('emb_word', 'emb_token_type', " in result.stdout
    assert "--names takes a map" in result.stdout
    assert "xlmr parity names TRACE DUMP -o names.toml" in result.stdout


def test_heads_that_come_first_are_hinted_at(trace: Trace, saved: Path, tmp_path: Path) -> None:
    heads_first = foreign(trace)["blk.0.attn.q"]
    np.savez(tmp_path / "port.npz", **{Q: heads_first})
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact", "--partial")
    assert f"{Q}: '{Q}' has shape {heads_first.shape} in the file; say its axes" in result.stdout
    assert 'axes = "N B S D"' in result.stdout
    np.savez(tmp_path / "port.npz", **{Q: heads_first[:, :, 1:]})
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact", "--partial")
    assert "no order of axes makes it fit" in result.stdout


def test_axes_that_have_two_readings_are_hinted_at(toy_checkpoint: Path, tmp_path: Path) -> None:
    trace = record(toy_checkpoint, ["the cat sees the dog", "a bird"])  # as many texts as heads
    trace.save(tmp_path / "trace.safetensors")
    np.savez(tmp_path / "port.npz", **{Q: foreign(trace)["blk.0.attn.q"]})
    result = xlmr("check", tmp_path / "trace.safetensors", tmp_path / "port.npz", "--exact", "--partial")
    assert "in the file, which B N S D and N B S D fit: say in the map of names which" in result.stdout


def test_wrong_axes_are_reported_with_the_shape_in_the_file(trace: Trace, saved: Path, tmp_path: Path) -> None:
    heads_first = foreign(trace)["blk.0.attn.q"]
    np.savez(tmp_path / "port.npz", q=heads_first, one=heads_first[:, 0])
    names = tmp_path / "names.json"
    heads, _, tokens, _ = heads_first.shape
    for name, axes, message in (
        ("q", "B S N D", f"{heads_first.shape}: N has {tokens} entries, the config says {heads}"),
        ("one", "S D", f"{heads_first[:, 0].shape}; ours are B S N D"),
    ):
        names.write_text(f'{{"names": {{"{Q}": {{"name": "{name}", "axes": "{axes}"}}}}}}')
        result = xlmr("check", saved, tmp_path / "port.npz", "--exact", "--partial", "--names", names)
        assert f"do not fit a tensor of shape {message}" in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["check", "diagnose", "names"])
def test_swapped_arguments_are_reported(trace: Trace, saved: Path, tmp_path: Path, command: str) -> None:
    np.savez(tmp_path / "port.npz", **foreign(trace))
    result = xlmr(command, tmp_path / "port.npz", saved)
    assert result.exit_code == 1
    assert "the arguments are swapped" in result.stderr
    unknown = xlmr(command, tmp_path / "port.npz", tmp_path / "port.npz")
    assert "arguments are swapped" not in unknown.stderr


def test_axes_that_fit(trace: Trace) -> None:
    texts, tokens = trace.real.shape
    config = trace.config
    heads, width, hidden = config.num_attention_heads, config.head_dim, config.hidden_size
    assert axes_that_fit(Q, (texts, heads, tokens, width), trace)[0] == "B N S D"
    assert axes_that_fit(Q, (tokens, texts, hidden), trace) == ["S B H"]
    assert "T N D" in axes_that_fit(Q, (int(trace.real.sum()), heads, width), trace)
    assert axes_that_fit(Q, (texts, tokens, hidden + 1), trace) == []
    assert "B Q N K" in axes_that_fit("layers.0.attention.probs", (texts, tokens, heads, tokens), trace)


def test_a_dump_without_any_name_or_shape_of_ours_is_reported_what_to_do(saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "port.npz", first=np.ones(3), second=np.ones((2, 7)))  # no shapes of ours
    result = xlmr("check", saved, tmp_path / "port.npz", "--exact")
    message = " ".join(result.stderr.split())
    assert "has no tensor of the trace, but 'first', 'second'" in message
    assert "(--names)" in message
    assert "xlmr parity match TRACE DUMP -o names.toml" in message


def test_shapes_are_read_from_both_kinds_of_files(saved: Path, trace: Trace, tmp_path: Path) -> None:
    assert shapes_in(saved)[Q] == tuple(trace.tensors[Q].shape)
    np.savez_compressed(tmp_path / "port.npz", a=np.zeros((2, 3)), b=np.float32(1))
    assert shapes_in(tmp_path / "port.npz") == {"a": (2, 3), "b": ()}
    (tmp_path / "port.npz").write_bytes(b"PK no")
    with pytest.raises(TraceError, match=r"port\.npz is not an .npz file"):
        shapes_in(tmp_path / "port.npz")
