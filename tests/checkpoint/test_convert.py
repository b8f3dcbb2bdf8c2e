"""Conversions: bit for bit, the same bytes every time, all or nothing, and nothing lost without being asked."""

import contextlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import fairseq_files, published
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlmr_core import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.files import open_weights
from xlmr_core.checkpoint.layouts import FAMILIES

# fairseq's eps is 1e-5, always.
POST_NORM = replace(reference.POST_NORM, num_hidden_layers=2, layer_norm_eps=1e-5)
CONFIGS = {"post-norm": POST_NORM, "pre-norm": replace(POST_NORM, norm_first=True)}
LEAVES_OUT = {"torchtext": ["lm_head"], "torchtext-0.14": ["lm_head"]}  # torchtext has only the encoder
WAYS = [(kind, to) for kind in CONFIGS for to in FAMILIES if kind == "post-norm" or to in ("hf", "native", "fairseq")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Path) -> dict[str, Path]:
    """The same weights in transformers' layout, with a vocabulary beside them."""
    root = tmp_path_factory.mktemp("sources")
    for kind, config in CONFIGS.items():
        state = fairseq_files.hf_state(config)
        tensors = {key: t.clone() for key, t in state.items() if not key.startswith("lm_head.decoder.")}
        (root / kind).mkdir()
        save_file(tensors, root / kind / "model.safetensors", metadata={"format": "pt"})
        values = config.to_dict() | {"finetuning_task": "kept", "torch_dtype": "float32"}
        (root / kind / "config.json").write_text(json.dumps(values))
        tokenizer = toy_checkpoint / "sentencepiece.bpe.model"
        (root / kind / tokenizer.name).write_bytes(tokenizer.read_bytes())
    return {kind: root / kind for kind in CONFIGS}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(source: Path, folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    return published.rewritten(source, folder, load_file(source / "model.safetensors") | tensors, **config)


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "to"), WAYS)
def test_there_and_back(kind: str, to: str, sources: dict, tmp_path: Path) -> None:
    drop = LEAVES_OUT.get(to, [])
    there = convert(sources[kind], tmp_path / "there", to, drop=drop)
    back = convert(tmp_path / "there", tmp_path / "back", "hf")
    before, after = load_file(sources[kind] / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    if drop:
        before = {key.removeprefix("roberta."): t for key, t in before.items() if not key.startswith("lm_head.")}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert there.source_keys.keys() == load_file(sources[kind] / "model.safetensors").keys()
    lost = {key for key, entry in there.source_keys.items() if entry.status == "dropped"}
    assert lost == {key for key in there.source_keys if drop and key.startswith("lm_head.")}
    assert set(back.written_keys) == set(after)
    cls = XLMRobertaModel if drop else XLMRobertaForMaskedLM
    config = cls.from_pretrained(tmp_path / "back").config
    assert config == CONFIGS[kind]
    XLMRobertaTokenizer.from_pretrained(tmp_path / "back")


@pytest.mark.parametrize("release", fairseq_files.RELEASES)
def test_from_fairseq_and_back_to_its_own_dialect(release: str, tmp_path: Path) -> None:
    fairseq_files.write_fairseq(tmp_path / "a", POST_NORM, release)
    convert(tmp_path / "a", tmp_path / "b", "hf")
    convert(tmp_path / "b", tmp_path / "c", release)
    (tmp_path / "c" / "config.json").unlink()  # the settings in model.pt are enough
    before = torch.load(tmp_path / "a" / "model.pt", weights_only=False)
    after = torch.load(tmp_path / "c" / "model.pt", weights_only=False)
    assert before["model"].keys() == after["model"].keys()
    assert all(torch.equal(tensor, after["model"][key]) for key, tensor in before["model"].items())
    for name in ("encoder_layers", "encoder_embed_dim", "dropout", "max_positions", "activation_fn", "task"):
        assert getattr(before["args"], name) == getattr(after["args"], name)
    models = [XLMRobertaForMaskedLM.from_pretrained(tmp_path / name) for name in "abc"]
    batch = reference.awkward_batch(POST_NORM)
    with torch.no_grad():
        answers = [model(**batch).logits for model in models]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_fairseq_tar_becomes_a_folder_for_transformers(tmp_path: Path, toy_checkpoint: Path) -> None:
    hf = fairseq_files.write_fairseq(tmp_path / "xlmr.tiny", POST_NORM)
    tokenizer = toy_checkpoint / "sentencepiece.bpe.model"
    (tmp_path / "xlmr.tiny" / tokenizer.name).write_bytes(tokenizer.read_bytes())
    with tarfile.open(tmp_path / "xlmr.tiny.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "xlmr.tiny", "xlmr.tiny")
    report = convert(tmp_path / "xlmr.tiny.tar.gz", tmp_path / "out", "hf")
    assert report.files == ("config.json", "model.safetensors", "sentencepiece.bpe.model")
    assert "fairseq's settings" in str(report)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(hf[key], tensor) for key, tensor in written.items())
    import transformers

    model = transformers.XLMRobertaForMaskedLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    batch = reference.awkward_batch(POST_NORM)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "out")(**batch).logits
        assert torch.equal(ours[real], model(**batch).logits[real])


@pytest.mark.parametrize("to", FAMILIES)
def test_the_same_bytes_every_time(to: str, sources: dict, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(sources["post-norm"], tmp_path / name, to, drop=LEAVES_OUT.get(to, []))
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no temporary folder


def test_without_a_bar_nothing_is_asked_of_tqdm(sources: dict, tmp_path: Path, monkeypatch: Any) -> None:
    """Its lock is shared by forked processes: one that was killed with it would stop the others for good."""
    monkeypatch.setattr("tqdm.tqdm", None)
    convert(sources["post-norm"], tmp_path / "out", "hf")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        convert(sources["post-norm"], tmp_path / "other", "hf", progress=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", ["hf", "fairseq"])  # a tied tensor is written once in each
def test_the_progress_bar_counts_every_byte(to: str, sources: dict, tmp_path: Path, monkeypatch: Any) -> None:
    told: list[Any] = []

    @contextlib.contextmanager
    def bar(total: int, progress: bool) -> Iterator[Any]:
        told.append((total, progress))
        yield told.append

    monkeypatch.setattr("xlmr_core.checkpoint.convert._ticking", bar)
    report = convert(sources["post-norm"], tmp_path / "out", to, progress=True)
    assert told[0] == (report.num_bytes, True)
    assert sum(told[1:]) == report.num_bytes
    assert len(told) > 20
    weights = tmp_path / "out" / ("model.safetensors" if to == "hf" else "model.pt")
    assert report.num_bytes < weights.stat().st_size < report.num_bytes + 20_000  # names, settings, and fillers


def test_save_pretrained_writes_the_same_file(sources: dict, tmp_path: Path) -> None:
    convert(sources["post-norm"], tmp_path / "a", "hf")
    XLMRobertaForMaskedLM.from_pretrained(sources["post-norm"]).save_pretrained(tmp_path / "b")
    assert bytes_of(tmp_path / "a")["model.safetensors"] == bytes_of(tmp_path / "b")["model.safetensors"]


@pytest.mark.parametrize("kind", published.KINDS)
def test_what_transformers_wrote_is_copied_byte_for_byte(kind: str, folders: dict, tmp_path: Path) -> None:
    convert(folders[kind], tmp_path / "out", "hf")
    assert bytes_of(tmp_path / "out")["model.safetensors"] == bytes_of(folders[kind])["model.safetensors"]
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (folders[kind], tmp_path / "out"))
    assert before.items() <= after.items()


def test_fields_of_config_json_are_kept(sources: dict, tmp_path: Path) -> None:
    convert(sources["post-norm"], tmp_path / "out", "native", dtype=torch.bfloat16)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["finetuning_task"] == "kept"
    assert values["dtype"] == "bfloat16"
    assert "torch_dtype" not in values


def test_dict_txt_is_written_for_fairseq(sources: dict, tmp_path: Path) -> None:
    convert(sources["post-norm"], tmp_path / "out", "fairseq")
    lines = (tmp_path / "out" / "dict.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = XLMRobertaTokenizer.from_pretrained(sources["post-norm"])
    assert len(lines) == tokenizer.vocab_size - 5  # but for <s>, <pad>, </s>, <unk> and <mask>


# ---- dtypes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("to", ["hf", "fairseq"])
def test_a_cast_is_that_of_torch(to: str, dtype: torch.dtype, sources: dict, tmp_path: Path) -> None:
    report = convert(sources["post-norm"], tmp_path / "a", to, dtype=dtype)
    convert(tmp_path / "a", tmp_path / "b", "hf")
    before = load_file(sources["post-norm"] / "model.safetensors")
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert all(torch.equal(tensor.to(dtype), after[key]) for key, tensor in before.items())
    assert ("rounded" in str(report)) == (dtype != torch.float32)
    convert(tmp_path / "b", tmp_path / "c", "hf", dtype=torch.float32)  # wider: exact
    exact = load_file(tmp_path / "c" / "model.safetensors")
    assert all(torch.equal(tensor.to(dtype).float(), exact[key]) for key, tensor in before.items())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_number_that_would_become_infinite(stored: torch.dtype, sources: dict, tmp_path: Path) -> None:
    tensors = {k: t.to(stored) for k, t in load_file(sources["post-norm"] / "model.safetensors").items()}
    tensors["lm_head.dense.bias"][2] = 70_000
    folder = published.rewritten(sources["post-norm"], tmp_path / "large", tensors)
    with pytest.raises(CheckpointError, match=r"lm_head\.dense\.bias holds 7\S+, which is infinite in float16 .*65504"):
        convert(folder, tmp_path / "out", "hf", dtype=torch.float16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large"]
    convert(folder, tmp_path / "out", "hf", dtype=torch.bfloat16)


def test_what_was_infinite_stays_so(sources: dict, tmp_path: Path) -> None:
    bias = torch.tensor([float("inf"), -float("inf"), float("nan")] + [0.0] * 21)
    folder = changed(sources["post-norm"], tmp_path / "odd", {"lm_head.dense.bias": bias})
    convert(folder, tmp_path / "out", "hf", dtype=torch.float16)
    after = load_file(tmp_path / "out" / "model.safetensors")["lm_head.dense.bias"]
    assert torch.equal(after.isinf(), bias.isinf())
    assert torch.equal(after.isnan(), bias.isnan())


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file", "empty folder", "broken link"])
def test_an_existing_destination_is_left_alone(kind: str, sources: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        (out / "mine").write_text("mine") if kind == "folder" else None
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"out exists\. Nothing is overwritten"):
        convert(sources["post-norm"], out, "hf")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "dict.txt", "sentencepiece.bpe.model"])
def test_a_link_out_of_the_folder_is_not_copied(name: str, sources: dict, tmp_path: Path) -> None:
    source = published.copied(sources["post-norm"], tmp_path / "source")
    (tmp_path / "secret.json").write_text('{"token": "secret"}')
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is a link to .*secret\.json, outside of the folder"):
        convert(source, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()
    (source / name).unlink()
    (source / "inside").write_text("{}")
    if name.endswith(".json"):
        (source / name).symlink_to("inside")
        convert(source, tmp_path / "out", "hf")
        assert (tmp_path / "out" / name).read_text() == "{}"
        assert not (tmp_path / "out" / name).is_symlink()


def test_a_snapshot_of_the_cache_may_link_to_its_blobs_only(sources: dict, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    source = published.copied(sources["post-norm"], repository / "snapshots" / ("0" * 40))
    for place in (repository / "blobs", tmp_path / "blobs" / "ab", tmp_path / "models--org--other" / "blobs"):
        place.mkdir(parents=True)
        (place / "12").write_text("{}")
        (source / "tokenizer.json").unlink(missing_ok=True)
        (source / "tokenizer.json").symlink_to(place / "12")
        if "other" in str(place):
            with pytest.raises(CheckpointError, match="outside of the folder"):
                convert(source, tmp_path / "refused", "hf")
        else:
            convert(source, tmp_path / f"out {place.name}", "hf")


def test_what_is_called_json_must_be_json(sources: dict, tmp_path: Path) -> None:
    source = published.copied(sources["post-norm"], tmp_path / "source")
    (source / "tokenizer.json").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: it is not JSON .* it is not copied"):
        convert(source, tmp_path / "out", "hf")


def test_token_types_that_fairseq_would_lose(sources: dict, tmp_path: Path) -> None:
    key = "roberta.embeddings.token_type_embeddings.weight"
    folder = changed(sources["post-norm"], tmp_path / "typed", {key: torch.full((1, 24), 1e-30)})
    for to in ("fairseq", "fairseq-1.0"):
        with pytest.raises(
            CheckpointError, match=r"token_type_embeddings\.weight holds numbers other than 0.* hf and native have one"
        ):
            convert(folder, tmp_path / "out", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["typed"]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("to", ["fairseq", "hf"])
def test_token_types_can_be_folded_into_the_positions(kind: str, to: str, sources: dict, tmp_path: Path) -> None:
    key = "roberta.embeddings.token_type_embeddings.weight"
    folder = changed(sources[kind], tmp_path / "typed", {key: torch.randn(1, 24)})
    report = convert(folder, tmp_path / "out", to, dtype=torch.float64, fold_token_types=True)
    assert any("added to every position row, as asked" in note for note in report.notes)
    before, after = (XLMRobertaForMaskedLM.from_pretrained(f, dtype=torch.float64) for f in (folder, tmp_path / "out"))
    assert not after.encoder.embeddings.token_type_embeddings.weight.any()
    assert before.encoder.embeddings.token_type_embeddings.weight.all()
    batch = reference.awkward_batch(before.config)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        gap = reference.gap(before(**batch).logits[real], after(**batch).logits[real])
    assert gap <= reference.ORACLE_TOLERANCE


def test_folding_rounds_once_and_only_where_there_is_something(sources: dict, tmp_path: Path) -> None:
    source = sources["post-norm"]
    report = convert(source, tmp_path / "zeros", "hf", fold_token_types=True)
    assert not any("position row" in note for note in report.notes)
    assert (tmp_path / "zeros" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()

    types, positions = (f"roberta.embeddings.{name}_embeddings.weight" for name in ("token_type", "position"))
    halves = {key: tensor.half() for key, tensor in load_file(source / "model.safetensors").items()}
    halves[types] = torch.full((1, 24), 1e-4).half()
    folder = changed(source, tmp_path / "halves", halves)
    convert(folder, tmp_path / "out", "fairseq", dtype=torch.float32, fold_token_types=True)
    found = open_weights(tmp_path / "out" / "model.pt")["decoder.sentence_encoder.embed_positions.weight"]
    assert torch.equal(found, (halves[positions].double() + halves[types].double()).float())


def test_two_token_types_cannot_be_folded(sources: dict, tmp_path: Path) -> None:
    key = "roberta.embeddings.token_type_embeddings.weight"
    folder = changed(sources["post-norm"], tmp_path / "two", {key: torch.ones(2, 24)}, type_vocab_size=2)
    with pytest.raises(CheckpointError, match="has 2 rows: only a single token type can be folded"):
        convert(folder, tmp_path / "out", "fairseq", fold_token_types=True)


def test_a_part_without_a_place_must_be_dropped_by_name(folders: dict, sources: dict, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"has no name for .*lm_head.*would lose them\. Leave lm_head out on purpose"
    ):
        convert(sources["post-norm"], tmp_path / "out", "torchtext")
    report = convert(folders["encoder"], tmp_path / "out", "native", drop=["pooler"])
    dropped = {key: entry.why for key, entry in report.source_keys.items() if entry.status == "dropped"}
    assert dropped == dict.fromkeys(("pooler.dense.weight", "pooler.dense.bias"), "left out on purpose")
    with pytest.raises(CheckpointError, match="there is no group 'poolers' to drop"):
        convert(folders["encoder"], tmp_path / "other", "native", drop=["poolers"])


def test_a_pooler_beside_an_lm_head_is_kept(folders: dict, tmp_path: Path) -> None:
    """Published masked-LM files carry one, which the class with the LM head does not use."""
    pooler = {
        "roberta.pooler.dense.weight": torch.randn(24, 24),
        "roberta.pooler.dense.bias": torch.randn(24),
    }
    folder = changed(folders["masked-lm"], tmp_path / "pooled", pooler)
    convert(folder, tmp_path / "native", "native")
    convert(tmp_path / "native", tmp_path / "back", "hf")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(tensor, after[key]) for key, tensor in pooler.items())


@pytest.mark.parametrize("to", ["onnx", "", "HF"])
def test_an_unknown_form(to: str, sources: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no key layout '{to}' to write: expected one of hf, native"):
        convert(sources["post-norm"], tmp_path / "out", to)


def test_fairseq_has_its_own_eps(folders: dict, tmp_path: Path) -> None:
    tensors = {"roberta.embeddings.token_type_embeddings.weight": torch.zeros(1, 24)}
    with pytest.raises(CheckpointError, match="it would give other numbers there"):
        convert(changed(folders["masked-lm"], tmp_path / "eps", tensors), tmp_path / "out", "fairseq")


def test_mixed_dtypes_in_one_fused_tensor(sources: dict, tmp_path: Path) -> None:
    key = "roberta.encoder.layer.1.attention.self.key.bias"
    half = load_file(sources["post-norm"] / "model.safetensors")[key].half()
    folder = changed(sources["post-norm"], tmp_path / "mixed", {key: half})
    with pytest.raises(CheckpointError, match=r"in_proj_bias' would be made of torch\.float16 and torch\.float32"):
        convert(folder, tmp_path / "out", "fairseq")
    convert(folder, tmp_path / "out", "fairseq", dtype=torch.float32)


def test_the_report_accounts_for_every_key(sources: dict, tmp_path: Path) -> None:
    report = convert(sources["post-norm"], tmp_path / "out", "fairseq")
    text = report.details()
    assert all(repr(key) in text for key in report.source_keys)
    assert all(repr(key) in text for key in open_weights(tmp_path / "out" / "model.pt"))
    assert "HF post-norm with 'roberta.' -> fairseq 2019" in str(report)
    assert len(str(report).splitlines()) < 10


# ---- full size ------------------------------------------------------------------------------------------------------

MEASURE = """
import json, resource, sys, threading, time
from pathlib import Path
import torch
from xlmr_core.checkpoint.convert import convert

def private():  # bytes of memory that belong to this process and to no file
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

before, peak, done = private(), [0], threading.Event()
def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], private() - before)
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
convert(sys.argv[1], sys.argv[2], sys.argv[3])
seconds = time.perf_counter() - start
done.set()
watcher.join()
print(json.dumps({"seconds": seconds, "peak": peak[0]}))
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes, which pytest would keep for days."""
    import shutil

    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: run it on Linux")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_a_base_size_file_streams(zipped: bool, room: Path) -> None:
    """fairseq -> HF -> fairseq: one tensor at a time, but an old file, which cannot be mapped, is read as a whole."""
    config = XLMRobertaConfig()
    hf = fairseq_files.hf_state(config)
    (room / "a").mkdir()
    content = fairseq_files.fairseq_checkpoint(fairseq_files.fairseq_state(hf, config), config)
    torch.save(content, room / "a" / "model.pt", _use_new_zipfile_serialization=zipped)
    del content
    size = (room / "a" / "model.pt").stat().st_size
    for source, destination, to in (("a", "b", "hf"), ("b", "c", "fairseq")):
        command = [sys.executable, "-c", MEASURE, str(room / source), str(room / destination), to]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=published.child_env())
        measured = json.loads(run.stdout)
        print(f"\n{source} -> {to}: {size:,} bytes, {measured['seconds']:.1f} s, peak {measured['peak']:,} bytes")
        read_whole = source == "a" and not zipped
        assert measured["peak"] < size * (1.1 if read_whole else 0.1)
    after = torch.load(room / "c" / "model.pt", weights_only=False, mmap=True)["model"]
    before = torch.load(room / "a" / "model.pt", weights_only=False)["model"]
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
