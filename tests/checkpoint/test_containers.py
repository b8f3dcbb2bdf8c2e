"""Every container that weights were published in: the same tensors, the same config, whatever they lie in."""

import io
import json
import os
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import fairseq_files
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError, find_tokenizer, inspect_checkpoint
from xlmr_core.checkpoint.fairseq import check_dictionary, config_from, dictionary_of, pieces_of, settings_for
from xlmr_core.checkpoint.files import files_in, open_weights, read_config
from xlmr_core.checkpoint.pickles import HARMLESS, read_pickle
from xlmr_core.checkpoint.writing import LONG_AGO, Entry, entries_of, write_safetensors, write_torch
from xlmr_core.heads import XLMRobertaForMaskedLM

CONFIG = replace(reference.POST_NORM, num_hidden_layers=2, layer_norm_eps=1e-5, classifier_dropout=0.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, toy_checkpoint: Path) -> Path:
    """A folder as fairseq publishes it: model.pt, dict.txt and the SentencePiece model."""
    folder = tmp_path_factory.mktemp("fairseq") / "xlmr.tiny"
    fairseq_files.write_fairseq(folder, CONFIG)
    tokenizer = toy_checkpoint / "sentencepiece.bpe.model"
    (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
    (folder / "dict.txt").write_text(dictionary_of(pieces_of(tokenizer)), encoding="utf-8")
    return folder


def state_of(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "model.pt", weights_only=False)["model"]


def packed(folder: Path, path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, folder.name)
    return path


def copy_of(folder: Path, place: Path, **content: Any) -> Path:
    """The fairseq folder again, with other entries in its model.pt."""
    place.mkdir()
    whole = torch.load(folder / "model.pt", weights_only=False) | content
    torch.save({key: value for key, value in whole.items() if value is not ...}, place / "model.pt")
    return place


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# ---- fairseq's own file ---------------------------------------------------------------------------------------------


def test_a_fairseq_folder_needs_neither_config_nor_fairseq(published: Path) -> None:
    files = files_in(published)
    assert files.config == files.weights == published / "model.pt"
    assert read_config(files.config) == CONFIG
    assert same(open_weights(files.weights), state_of(published))
    assert find_tokenizer(published)[1] == CONFIG.max_tokens


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_tar_is_as_good_as_its_folder(mode: str, published: Path, tmp_path: Path) -> None:
    path = packed(published, tmp_path / ("xlmr.tiny.tar.gz" if mode == "w:gz" else "xlmr.tiny.tar"), mode)
    model, expected = (XLMRobertaForMaskedLM.from_pretrained(source) for source in (path, published))
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert model.config == CONFIG
    tokenizer, max_tokens = find_tokenizer(path)
    assert tokenizer.read_bytes() == (published / "sentencepiece.bpe.model").read_bytes()
    assert max_tokens == CONFIG.max_tokens
    assert not tokenizer.is_relative_to(tmp_path)  # nothing is written beside the tar
    assert inspect_checkpoint(path).problems == ()


def test_a_config_json_beside_it_wins(published: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path / "copy")
    (folder / "config.json").write_text(json.dumps(replace(CONFIG, layer_norm_eps=1e-3).to_dict()))
    assert read_config(files_in(folder).config).layer_norm_eps == 1e-3


@pytest.mark.parametrize("zipped", [True, False])
def test_old_files_that_are_no_zip(zipped: bool, published: Path, tmp_path: Path) -> None:
    """Those of 2019, xlmr.base among them, are older than PyTorch's zip format."""
    content = torch.load(published / "model.pt", weights_only=False)
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert same(open_weights(path), state_of(published))
    assert read_config(path) == CONFIG
    headers = open_weights(path, headers_only=True)
    assert {key: (t.shape, t.dtype) for key, t in headers.items()} == {
        key: (t.shape, t.dtype) for key, t in state_of(published).items()
    }
    assert inspect_checkpoint(path).problems == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, published: Path, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in state_of(published).items()}
    folder = copy_of(published, tmp_path / "copy", model=state)
    assert same(open_weights(folder / "model.pt"), state)
    model = XLMRobertaForMaskedLM.from_pretrained(folder, dtype=None)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_sharded_bin(published: Path, tmp_path: Path) -> None:
    state = state_of(published)
    names = {key: f"pytorch_model-0000{number % 3}-of-00003.bin" for number, key in enumerate(state)}
    for name in set(names.values()):
        torch.save({key: tensor.clone() for key, tensor in state.items() if names[key] == name}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert same(open_weights(files_in(tmp_path).weights), state)


# ---- fairseq's settings ---------------------------------------------------------------------------------------------


def _class_named(name: str) -> type:
    module, _, short = name.rpartition(".")
    return type(short, (), {"__module__": module})


@pytest.fixture
def omegaconf(monkeypatch: Any) -> Any:
    """Makes objects that pickle under the names of omegaconf's and fairseq's classes, which are not installed."""
    import sys
    import types

    made: dict[str, type] = {}
    for name in HARMLESS:
        module, _, short = name.rpartition(".")
        if module.split(".")[0] in ("omegaconf", "fairseq"):
            parts = module.split(".")
            for depth in range(1, len(parts) + 1):
                path = ".".join(parts[:depth])
                if path not in sys.modules:
                    monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
            made[name] = _class_named(name)
            setattr(sys.modules[module], short, made[name])

    def node(name: str, **state: Any) -> Any:
        instance = made[name]()
        instance.__dict__.update(state)
        return instance

    return node


def omega_config(omegaconf: Any, values: dict[str, Any]) -> Any:
    """A DictConfig, as omegaconf 2.1 pickles it."""
    metadata = omegaconf("omegaconf.base.ContainerMetadata", object_type=dict, key_type=Any, element_type=Any)
    leaf = omegaconf("omegaconf.base.Metadata", ref_type=Any, object_type=None, optional=True, key=None)
    content = {
        key: omega_config(omegaconf, value)
        if isinstance(value, dict)
        else omegaconf("omegaconf.nodes.AnyNode", _val=value, _metadata=leaf, _parent=None)
        for key, value in values.items()
    }
    return omegaconf("omegaconf.dictconfig.DictConfig", _metadata=metadata, _parent=None, _content=content)


@pytest.mark.parametrize("form", ["dict", "omegaconf", "namespace in a dict"])
def test_a_newer_file_has_cfg_instead_of_args(form: str, published: Path, tmp_path: Path, omegaconf: Any) -> None:
    settings = vars(torch.load(published / "model.pt", weights_only=False)["args"])
    cfg: Any = {"model": settings, "task": {"_name": "masked_lm"}}
    if form == "omegaconf":
        cfg = omega_config(omegaconf, cfg)
    elif form == "namespace in a dict":
        cfg["model"] = Namespace(**settings)
    folder = copy_of(published, tmp_path / "copy", args=None, cfg=cfg)
    assert read_config(folder / "model.pt") == CONFIG
    assert XLMRobertaForMaskedLM.from_pretrained(folder).config == CONFIG
    assert "fairseq's settings" in inspect_checkpoint(folder).notes[0]


def test_meters_of_an_old_training_are_read_past(published: Path, tmp_path: Path, omegaconf: Any) -> None:
    meters = OrderedDict(loss=omegaconf("fairseq.meters.AverageMeter", val=1.0, count=3))
    folder = copy_of(published, tmp_path / "copy", extra_state={"train_meters": meters})
    assert read_config(folder / "model.pt") == CONFIG


def test_a_class_that_is_not_on_the_list_is_refused_by_name(published: Path, tmp_path: Path) -> None:
    folder = copy_of(published, tmp_path / "copy", extra_state={"when": io.BytesIO()})
    with pytest.raises(CheckpointError, match=r"is refused.*Nothing was run.*_io\.BytesIO"):
        read_config(folder / "model.pt")


@pytest.mark.parametrize(
    "name", ["encoder_layers", "encoder_embed_dim", "encoder_attention_heads", "activation_fn", "dropout"]
)
def test_a_missing_setting_is_named(name: str, published: Path) -> None:
    pickled = read_pickle(published / "model.pt")
    assert pickled.settings is not None
    settings = {key: value for key, value in pickled.settings.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"no {name}.*Put a config\.json beside it"):
        config_from(settings, pickled.tensors, published)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_layers": "2"}, "num_hidden_layers must be of type int"),
        ({"activation_fn": "tanh"}, "activation_fn 'tanh', which in fairseq is the LM head's too"),
        ({"encoder_attention_heads": 7}, "multiple of num_attention_heads"),
        ({"dropout": 2.0}, r"must lie in \[0, 1\)"),
        ({"max_positions": None}, "no max_positions"),
    ],
)
def test_a_setting_that_cannot_be(settings: dict[str, Any], message: str, published: Path) -> None:
    pickled = read_pickle(published / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        config_from(dict(pickled.settings or {}) | settings, pickled.tensors, published)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("gelu", "gelu"), ("gelu_accurate", "gelu_pytorch_tanh"), ("relu", "relu")]
)
def test_the_activation_has_other_names(theirs: str, ours: str, published: Path) -> None:
    pickled = read_pickle(published / "model.pt")
    encoder = {key: tensor for key, tensor in pickled.tensors.items() if "lm_head" not in key}
    config = config_from(dict(pickled.settings or {}) | {"activation_fn": theirs}, encoder, published)
    assert config.hidden_act == ours
    assert settings_for(config, ("encoder",), "fairseq")["activation_fn"] == theirs


def test_without_settings_the_shapes_tell_all_but_the_heads(published: Path, tmp_path: Path) -> None:
    """Of a published width the heads are known; of any other the file is refused."""
    folder = copy_of(published, tmp_path / "copy", args=None)
    with pytest.raises(CheckpointError, match="no published model is 24 wide, so the number of heads is not known"):
        read_config(folder / "model.pt")
    with torch.device("meta"):
        wide = replace(CONFIG, hidden_size=768, num_attention_heads=12, intermediate_size=41)
        hf = {
            key: torch.empty(t.shape)
            for key, t in reference.build_reference(wide, "eager", "ForMaskedLM").state_dict().items()
        }
        for release in fairseq_files.RELEASES:
            state = fairseq_files.fairseq_state(hf, wide, release)
            found = config_from(None, state, tmp_path)
            assert found == replace(
                wide, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, classifier_dropout=None
            )


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-12}, {"bos_token_id": 5}])
def test_what_fairseq_cannot_express_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="it would give other numbers there"):
        settings_for(replace(CONFIG, **change), ("encoder",), "fairseq")


def test_settings_there_and_back(published: Path) -> None:
    for config in (CONFIG, replace(CONFIG, tie_word_embeddings=False), replace(CONFIG, hidden_dropout_prob=0.25)):
        tensors = read_pickle(published / "model.pt").tensors
        assert config_from(settings_for(config, ("encoder", "lm_head"), "fairseq"), tensors, published) == config


# ---- dict.txt -------------------------------------------------------------------------------------------------------


def test_a_dictionary_of_another_vocabulary_is_refused(published: Path, tmp_path: Path) -> None:
    tokenizer, lines = published / "sentencepiece.bpe.model", (published / "dict.txt").read_text().splitlines()
    (tmp_path / "model.pt").write_bytes((published / "model.pt").read_bytes())
    (tmp_path / tokenizer.name).write_bytes(tokenizer.read_bytes())
    lines[3], lines[4] = lines[4], lines[3]
    (tmp_path / "dict.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"dict\.txt, line 4, has .* where the SentencePiece model has"):
        find_tokenizer(tmp_path)


def test_a_dictionary_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("a 1\nb 1\n")
    check_dictionary(path, ["a", "b"])
    for pieces in (["a"], ["a", "b", "c"]):
        with pytest.raises(CheckpointError, match=f"lists 2 pieces; the SentencePiece model has {len(pieces)}"):
            check_dictionary(path, pieces)


@pytest.mark.parametrize(("size", "message"), [(3, "byte 0, 0xff, is not UTF-8"), (2**33, "at most")])
def test_a_dictionary_that_is_none_is_named(size: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_bytes(b"\xff")
    os.truncate(path, size)  # sparse: it takes no room
    with pytest.raises(CheckpointError, match=rf"dict\.txt: .*{message}"):
        check_dictionary(path, ["a"])


# ---- writing --------------------------------------------------------------------------------------------------------

MIXED = {
    "b.x": torch.arange(12.0).view(3, 4),
    "a": torch.arange(5).half(),
    'ä"\\': torch.ones(2, 2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(3.5),
    "d": torch.ones(2, dtype=torch.float64),
    "transposed": torch.arange(6.0).view(2, 3).t(),
}


def test_safetensors_are_those_of_the_library(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    integers = {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)}
    others = {"bool": torch.tensor([True, False]), "u8": torch.ones(1, dtype=torch.uint8)}
    tensors = {key: tensor.contiguous() for key, tensor in {**MIXED, **integers, **others}.items()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_safetensors({**tensors, **MIXED}, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("mmap", [True, False])
def test_torch_reads_what_is_written(mmap: bool, tmp_path: Path) -> None:
    write_torch(entries_of(MIXED), tmp_path / "plain.pt")
    read = torch.load(tmp_path / "plain.pt", weights_only=True, mmap=mmap)
    assert list(read) == list(MIXED)
    assert same(dict(read), MIXED)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values() if mmap)
    write_torch(entries_of(MIXED), tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "plain.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "plain.pt") as archive:
        assert archive.testzip() is None  # the checksums are right
        assert {member.date_time for member in archive.infolist()} == {LONG_AGO}  # tomorrow's bytes are the same


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    table = torch.randn(100, 10)
    tied = [Entry(key, table.dtype, (100, 10), lambda: table, "the table") for key in ("a", "b")]
    write_torch(tied, tmp_path / "tied.pt", {"encoder_layers": 1})
    assert (tmp_path / "tied.pt").stat().st_size < 1.5 * table.nbytes
    content = torch.load(tmp_path / "tied.pt", weights_only=False)
    assert content["args"] == Namespace(encoder_layers=1)
    assert content["model"]["a"].data_ptr() == content["model"]["b"].data_ptr()
