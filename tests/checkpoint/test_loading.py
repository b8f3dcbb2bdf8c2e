"""From a file to a model that answers as transformers does, and back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import transformers
from checkpoint import published
from safetensors import safe_open

import xlmr_core
from xlmr_core.checkpoint import CheckpointError, find_tokenizer, load_pretrained, save_pretrained
from xlmr_core.checkpoint.convert import convert
from xlmr_core.heads import XLMRobertaForMaskedLM, model_classes
from xlmr_core.model import XLMRobertaModel
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tokenizer import XLMRobertaTokenizer

CLASSES = {"ForMaskedLM": XLMRobertaForMaskedLM, "Model": XLMRobertaModel}


def our_class(kind: str) -> Any:
    return CLASSES[published.KINDS[kind][1]]


def answer(model: Any, kind: str) -> torch.Tensor:
    """Logits or hidden states of the real tokens of the awkward batch. Works on our models and on transformers'."""
    batch = reference.awkward_batch(published.config_of(kind))
    with torch.no_grad():
        out = model(**batch)
    return (out.last_hidden_state if kind.startswith("encoder") else out.logits)[batch["attention_mask"].bool()]


# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", published.KINDS)
def test_every_tensor_and_every_answer_is_that_of_transformers(kind: str, folders: dict, models: dict) -> None:
    model = our_class(kind).from_pretrained(folders[kind])
    theirs = models[kind].state_dict()
    keys = published.our_keys(kind)
    for ours, tensor in model.state_dict().items():
        key = keys.get(ours, "roberta.embeddings.word_embeddings.weight")  # the tied decoder is not in the file
        assert torch.equal(tensor, theirs[key]), ours
    assert torch.equal(answer(model, kind), answer(models[kind], kind))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.norm_first == published.config_of(kind).norm_first


@pytest.mark.parametrize("kind", ["masked-lm", "masked-lm-xl"])
def test_position_rows_are_not_shifted(kind: str, folders: dict) -> None:
    """All 31 rows, each with the values of its own row: a slice [2:] or [:512] has the right shape elsewhere."""
    rows = torch.arange(31.0)[:, None] + torch.arange(24.0) / 100
    tensors = published.tensors_of(folders[kind])
    tensors["roberta.embeddings.position_embeddings.weight"] = rows
    folder = published.rewritten(folders[kind], Path(folders[kind]).parent / f"rows-{kind}", tensors)
    model = XLMRobertaForMaskedLM.from_pretrained(folder)
    assert torch.equal(model.encoder.embeddings.position_embeddings.weight, rows)


def test_the_decoder_is_the_word_table_itself(folders: dict) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"])
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight


def test_an_untied_decoder_is_loaded_untied(tmp_path: Path) -> None:
    theirs = published.write(tmp_path, "masked-lm", tied=False)
    model = XLMRobertaForMaskedLM.from_pretrained(tmp_path)
    assert not torch.equal(model.lm_head.decoder.weight, model.encoder.embeddings.word_embeddings.weight)
    assert torch.equal(answer(model, "masked-lm"), answer(theirs, "masked-lm"))


def test_the_pooler_is_kept_where_there_is_one(folders: dict, models: dict) -> None:
    batch = reference.awkward_batch(reference.POST_NORM)
    with torch.no_grad():
        ours = XLMRobertaModel.from_pretrained(folders["encoder"])(**batch).pooler_output
        theirs = models["encoder"](**batch).pooler_output
    assert ours is not None
    assert torch.equal(ours, theirs)
    bare = XLMRobertaModel.from_pretrained(folders["masked-lm"])
    assert bare.pooler is None
    assert bare.load_report is not None
    assert bare.load_report.checkpoint_keys["lm_head.bias"].status == "dropped"
    assert "XLMRobertaModel has no lm_head" in str(bare.load_report)


@pytest.mark.parametrize("options", [{"max_shard_size": "3KB"}, {"max_shard_size": "1GB"}], ids=["sharded", "single"])
@pytest.mark.parametrize("kind", published.KINDS)
def test_safetensors_single_and_sharded(kind: str, options: dict, tmp_path: Path) -> None:
    theirs = published.write(tmp_path, kind, **options)
    assert (tmp_path / "model.safetensors.index.json").exists() == (options["max_shard_size"] == "3KB")
    assert torch.equal(answer(our_class(kind).from_pretrained(tmp_path), kind), answer(theirs, kind))


@pytest.mark.parametrize("container", ["zip", "legacy", "sharded"])
@pytest.mark.parametrize("kind", published.KINDS)
def test_pickles_of_tensors(kind: str, container: str, folders: dict, models: dict, tmp_path: Path) -> None:
    """What torch.save wrote: a zip archive, the format before torch 1.6 (xlm-roberta-base's own), and shards."""
    (tmp_path / "config.json").write_bytes((folders[kind] / "config.json").read_bytes())
    state = models[kind].state_dict()  # with tied tensors under both names, as the published .bin has them
    if container == "sharded":
        middle = len(state) // 2
        parts = {"a.bin": dict(list(state.items())[:middle]), "b.bin": dict(list(state.items())[middle:])}
        for name, part in parts.items():
            torch.save(part, tmp_path / name)
        index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=container == "zip")
    assert torch.equal(answer(our_class(kind).from_pretrained(tmp_path), kind), answer(models[kind], kind))


def test_a_zipped_pickle_is_mapped_not_copied(folders: dict, models: dict, tmp_path: Path) -> None:
    published.copied(folders["encoder"], tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save(models["encoder"].state_dict(), tmp_path / "copy" / "pytorch_model.bin")
    model = XLMRobertaModel.from_pretrained(tmp_path / "copy")
    assert in_mapping_of(model.embeddings.word_embeddings.weight, tmp_path / "copy" / "pytorch_model.bin")


def in_mapping_of(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the tensor's memory is a mapping of the file."""
    if sys.platform != "linux":
        pytest.skip("memory maps are listed in /proc, on Linux only")
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        if name == str(path.resolve()) and first <= tensor.data_ptr() < last:
            return True
    return False


@pytest.mark.parametrize("kind", published.KINDS)
def test_every_parameter_lies_in_the_file(kind: str, folders: dict) -> None:
    model = our_class(kind).from_pretrained(folders[kind])
    for name, parameter in model.named_parameters():
        assert in_mapping_of(parameter, folders[kind] / "model.safetensors"), name


def test_nothing_is_initialised_at_random(folders: dict) -> None:
    """Building and loading draws no random number."""
    before = torch.get_rng_state()
    XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"])
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_does_not_import_the_compiler_or_the_network(folders: dict) -> None:
    """torch._dynamo takes a second to import, huggingface_hub a fraction of one."""
    script = (
        "import sys; from xlmr_core.heads import XLMRobertaForMaskedLM as M; M.from_pretrained(sys.argv[1]);"
        "print([name for name in ('torch._dynamo', 'huggingface_hub', 'numpy', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, folders["masked-lm"]],
        capture_output=True,
        text=True,
        check=True,
        env=published.child_env(),
    )
    assert run.stdout.strip() in ("[]", "['numpy']")  # torch itself imports numpy where it is installed


def test_training_leaves_the_mapped_file_alone(folders: dict, tmp_path: Path) -> None:
    folder = published.copied(folders["masked-lm"], tmp_path / "copy")
    before = digest(folder)
    model = XLMRobertaForMaskedLM.from_pretrained(folder).train()
    model(**reference.awkward_batch(reference.POST_NORM)).logits.sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert digest(folder) == before
    again = XLMRobertaForMaskedLM.from_pretrained(folder)
    assert not torch.equal(again.lm_head.dense.weight, model.lm_head.dense.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_dtype(dtype: torch.dtype, folders: dict, models: dict) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    word_table = models["masked-lm"].get_input_embeddings().weight
    assert torch.equal(model.lm_head.decoder.weight, word_table.to(dtype))
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight


def test_dtype_none_keeps_that_of_the_file(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    half = {key: tensor.half() for key, tensor in tensors.items()}
    model = XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, half), dtype=None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    as_default = XLMRobertaForMaskedLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in as_default.parameters()} == {torch.float32}

    mixed = half | {"lm_head.bias": tensors["lm_head.bias"]}
    folder = published.rewritten(folders["masked-lm"], tmp_path / "mixed", mixed)
    with pytest.raises(CheckpointError, match=r"mixes torch\.float16 and torch\.float32"):
        XLMRobertaForMaskedLM.from_pretrained(folder, dtype=None)


def test_quantised_weights_are_refused(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    tensors["lm_head.dense.weight"] = tensors["lm_head.dense.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match=r"lm_head\.dense\.weight does not hold plain .* \(torch\.int8\)"):
        XLMRobertaForMaskedLM.from_pretrained(published.rewritten(folders["masked-lm"], tmp_path, tensors))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_values_are_refused(change: Any, folders: dict, models: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folders["masked-lm"] / "config.json").read_bytes())
    state = models["masked-lm"].state_dict()
    state["lm_head.dense.weight"] = change(state["lm_head.dense.weight"])
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'lm_head\.dense\.weight' does not hold plain"):
        XLMRobertaForMaskedLM.from_pretrained(tmp_path)


def test_parameters_in_a_pickle_become_ours(folders: dict, models: dict, tmp_path: Path) -> None:
    """Not tensors but Parameters, frozen ones: a file must not decide what is trained."""
    (tmp_path / "config.json").write_bytes((folders["masked-lm"] / "config.json").read_bytes())
    frozen = {key: torch.nn.Parameter(t, requires_grad=False) for key, t in models["masked-lm"].state_dict().items()}
    torch.save(frozen, tmp_path / "pytorch_model.bin")
    for dtype in (torch.float32, torch.float64):
        model = XLMRobertaForMaskedLM.from_pretrained(tmp_path, dtype=dtype)
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_another_device(folders: dict) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"], device="meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight


@pytest.mark.gpu
def test_a_cuda_device(folders: dict, models: dict) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run on a machine that has one")
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"], device="cuda", dtype=torch.bfloat16)
    word_table = models["masked-lm"].get_input_embeddings().weight
    assert torch.equal(model.lm_head.decoder.weight.cpu(), word_table.bfloat16())
    assert model.lm_head.decoder.weight is model.encoder.embeddings.word_embeddings.weight


def test_attention_is_passed_on(folders: dict) -> None:
    model = XLMRobertaModel.from_pretrained(folders["encoder"], attention="sdpa")
    assert model.layers[0].attention.fused
    with pytest.raises(ValueError, match="attention must be 'eager' or 'sdpa', got 'flash'"):
        XLMRobertaModel.from_pretrained(folders["encoder"], attention="flash")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["folder", "file", "index", "text"])
def test_sources_on_disk(source: str, folders: dict, models: dict, tmp_path: Path, monkeypatch: Any) -> None:
    published.write(tmp_path / "here" / "org" / "name", "encoder", max_shard_size="3KB")
    monkeypatch.chdir(tmp_path / "here")
    path = {
        "folder": tmp_path / "here" / "org" / "name",
        "file": folders["encoder"] / "model.safetensors",
        "index": tmp_path / "here" / "org" / "name" / "model.safetensors.index.json",
        "text": "org/name",  # it could be a hub id, but what exists on disk wins
    }[source]
    assert torch.equal(answer(XLMRobertaModel.from_pretrained(path), "encoder"), answer(models["encoder"], "encoder"))


# ---- saving ---------------------------------------------------------------------------------------------------------


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", published.KINDS)
def test_transformers_loads_what_we_save(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs = published.write(tmp_path / "theirs", kind, tied=tied)
    our_class(kind).from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    config, name = published.KINDS[kind]
    architecture = f"XLMRoberta{'XL' if config.norm_first else ''}{name}"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [architecture]
    cls = getattr(transformers, architecture)
    again, info = published.quietly(
        cls.from_pretrained, tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert torch.equal(answer(again, kind), answer(theirs, kind))
    for key, tensor in theirs.state_dict().items():
        if tied or key != "lm_head.bias":  # not in use where untied: we write the decoder's bias under both names
            assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("kind", published.KINDS)
def test_the_file_comes_back_bit_for_bit(kind: str, folders: dict, tmp_path: Path) -> None:
    """transformers -> ours -> file: the same keys, the same bits, and the same bytes each time."""
    model = our_class(kind).from_pretrained(folders[kind])
    save_pretrained(model, tmp_path / "once")
    before, after = published.tensors_of(folders[kind]), published.tensors_of(tmp_path / "once")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(tensor.view(torch.int32), after[key].view(torch.int32)), key
    save_pretrained(load_pretrained(our_class(kind), tmp_path / "once"), tmp_path / "twice")
    assert digest(tmp_path / "once") == digest(tmp_path / "twice")
    (tmp_path / "plain").touch()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / name).stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safe_open(tmp_path / "once" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_odd_bits_survive_the_round_trip(folders: dict, tmp_path: Path) -> None:
    """NaN with a payload, both zeros, infinities, a subnormal."""
    odd = torch.tensor([0x7FC00123, -(2**31), 0, 0x7F800000, -0x800000, 1], dtype=torch.int32).view(torch.float32)
    tensors = published.tensors_of(folders["encoder"])
    tensors["embeddings.word_embeddings.weight"][3, :6] = odd
    folder = published.rewritten(folders["encoder"], tmp_path / "odd", tensors)
    XLMRobertaModel.from_pretrained(folder).save_pretrained(tmp_path / "out")
    after = published.tensors_of(tmp_path / "out")["embeddings.word_embeddings.weight"]
    assert torch.equal(after.view(torch.int32), tensors["embeddings.word_embeddings.weight"].view(torch.int32))


def test_the_config_comes_back(folders: dict, tmp_path: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"])
    model.half().save_pretrained(tmp_path)
    again = XLMRobertaForMaskedLM.from_pretrained(tmp_path, dtype=None)
    assert again.config == model.config == reference.POST_NORM
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float16}


def test_a_model_may_be_saved_over_the_file_it_is_mapped_from(folders: dict, tmp_path: Path) -> None:
    folder = published.copied(folders["masked-lm"], tmp_path / "copy")
    model = XLMRobertaForMaskedLM.from_pretrained(folder)
    before = answer(model, "masked-lm")
    with torch.no_grad():
        model.lm_head.dense.weight.zero_()
    changed = answer(model, "masked-lm")
    model.save_pretrained(folder)
    assert torch.equal(answer(model, "masked-lm"), changed)
    assert torch.equal(answer(XLMRobertaForMaskedLM.from_pretrained(folder), "masked-lm"), changed)
    assert not torch.equal(before, changed)


def test_an_interrupted_save_leaves_the_old_files(folders: dict, tmp_path: Path, monkeypatch: Any) -> None:
    folder = published.copied(folders["masked-lm"], tmp_path / "copy")
    before = digest(folder)
    model = XLMRobertaForMaskedLM.from_pretrained(folder)

    def half_written(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("xlmr_core.checkpoint.loading.write_safetensors", half_written)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(folder)
    assert digest(folder) == before


def test_a_model_whose_tie_was_broken_is_not_saved_as_tied(folders: dict, tmp_path: Path) -> None:
    model = XLMRobertaForMaskedLM.from_pretrained(folders["masked-lm"])
    model.lm_head.decoder.weight = torch.nn.Parameter(model.lm_head.decoder.weight.detach().clone())
    with pytest.raises(CheckpointError, match=r"no name for lm_head\.decoder\.weight"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_is_shared_beyond_the_config_is_written_under_each_name(tmp_path: Path) -> None:
    model = XLMRobertaForMaskedLM(replace(reference.POST_NORM, tie_word_embeddings=False))
    model.initialize()
    model.lm_head.decoder.weight = model.encoder.embeddings.word_embeddings.weight
    model.encoder.layers[1] = model.encoder.layers[0]
    model.save_pretrained(tmp_path)
    again = XLMRobertaForMaskedLM.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_fresh_model_can_be_saved_and_loaded(tmp_path: Path) -> None:
    model = XLMRobertaModel(replace(reference.PRE_NORM, num_hidden_layers=1))
    model.save_pretrained(tmp_path)
    again = XLMRobertaModel.from_pretrained(tmp_path)
    assert again.pooler is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


# ---- tokenizer ------------------------------------------------------------------------------------------------------


def test_find_tokenizer(folders: dict, tmp_path: Path) -> None:
    folder = published.copied(folders["encoder"], tmp_path / "copy")
    with pytest.raises(CheckpointError, match=r"copy has no sentencepiece\.bpe\.model"):
        find_tokenizer(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(b"pieces")
    assert find_tokenizer(folder) == (folder / "sentencepiece.bpe.model", 29)
    assert find_tokenizer(str(folder / "model.safetensors")) == (folder / "sentencepiece.bpe.model", 29)


def test_find_tokenizer_of_the_published_base(shared: Path) -> None:
    path, max_tokens = find_tokenizer(shared / "tokenizer" / "xlm-roberta-base")
    assert path.stat().st_size == 5_069_051
    assert max_tokens == 512


@pytest.mark.parametrize("model_type", ["camembert", "roberta"])
def test_another_vocabulary_is_refused(model_type: str, shared: Path, tmp_path: Path) -> None:
    """CamemBERT's file has the name and the first pieces of XLM-R's, but its numbers start at 4."""
    for name in ("config.json", "sentencepiece.bpe.model"):
        (tmp_path / name).write_bytes((shared / "tokenizer" / "xlm-roberta-base" / name).read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": model_type}))
    find_tokenizer(tmp_path)  # XLM-R's numbering: every piece, <pad> and <mask>
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": model_type, "vocab_size": 250005}))
    with pytest.raises(CheckpointError, match=rf"type {model_type}: .* not numbered as XLM-R's.* Use its own"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").unlink()
    with pytest.raises(CheckpointError, match=rf"type {model_type}: .* not numbered as XLM-R's"):
        find_tokenizer(tmp_path)


def test_a_tokenizer_of_gigabytes_is_not_read(toy_checkpoint: Path, tmp_path: Path) -> None:
    for model_type, message in (("xlm-roberta", "at most"), ("camembert", "is not a SentencePiece model .*at most")):
        folder = shutil.copytree(toy_checkpoint, tmp_path / model_type)
        values = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
        (folder / "config.json").write_text(json.dumps(values))
        os.truncate(folder / "sentencepiece.bpe.model", 2**34)  # sparse: it takes no room
        with pytest.raises(ValueError, match=rf"sentencepiece\.bpe\.model.*{message}"):
            XLMRobertaTokenizer.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model: it has \d+ bytes, at most"):
        convert(tmp_path / "xlm-roberta", tmp_path / "out", "native")


def test_every_class_says_what_it_has() -> None:
    exported = [getattr(xlmr_core, name) for name in xlmr_core.__all__]
    classes = [cls for cls in exported if isinstance(cls, type) and issubclass(cls, PretrainedModel)]
    assert set(classes) <= set(model_classes())
    assert len(classes) == 7
