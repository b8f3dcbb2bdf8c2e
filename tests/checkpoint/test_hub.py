"""The hub path end to end, against a server on this machine that speaks the hub's protocol."""

import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoint import hub_server, published
from checkpoint.hub_server import COMMIT, Behaviour, serve
from checkpoint.published import write_m3
from checkpoint.test_sentence_transformers import assert_same_sentences, files_of, sentence_folder
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError, cache, find_tokenizer, guard, inspect_checkpoint
from xlmr_core.checkpoint.cache import hash_of, verify
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.download import download
from xlmr_core.checkpoint.trimming import trim
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForM3, XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel

REPO = "org/tiny"


@pytest.fixture
def hub(folders: dict, tmp_path: Path, monkeypatch: Any) -> Iterator[Behaviour]:
    """The server with one repository, and huggingface_hub turned to it."""
    repo = published.copied(folders["masked-lm"], tmp_path / "repo")
    (repo / "sentencepiece.bpe.model").write_bytes(b"pieces")
    with serve(Behaviour({REPO: repo})) as behaviour:
        turn_to(behaviour.url, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its attempts
        huggingface_hub.utils.disable_progress_bars()
        yield behaviour
        huggingface_hub.utils.enable_progress_bars()
        huggingface_hub.close_session()


def turn_to(url: str, monkeypatch: Any) -> None:
    """What HF_ENDPOINT does at import."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def load(cache: Path, **options: Any) -> XLMRobertaForMaskedLM:
    return XLMRobertaForMaskedLM.from_pretrained(REPO, cache_dir=cache, **options)


def is_the_model(model: XLMRobertaForMaskedLM, models: dict) -> bool:
    return torch.equal(model.lm_head.decoder.weight, models["masked-lm"].get_input_embeddings().weight)


# ---- download and cache ---------------------------------------------------------------------------------------------


def test_download_then_cache(hub: Behaviour, models: dict, tmp_path: Path) -> None:
    model = load(tmp_path / "c")
    assert is_the_model(model, models)
    assert model.load_report is not None
    assert Path(model.load_report.source).parent.name == COMMIT
    assert hub.downloads() == ["main/config.json", f"{COMMIT}/model.safetensors"]
    hub.requests.clear()
    assert is_the_model(load(tmp_path / "c"), models)
    assert hub.downloads() == []


def test_only_what_is_needed_is_fetched(hub: Behaviour, tmp_path: Path) -> None:
    for name in ("tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "onnx.bin", "tokenizer.json"):
        (hub.repos[REPO] / name).write_bytes(b"x")
    load(tmp_path / "c")
    cached = {path.name for path in (tmp_path / "c").glob("models--*/snapshots/*/*")}
    assert cached == {"config.json", "model.safetensors"}


def test_shards(hub: Behaviour, models: dict, tmp_path: Path) -> None:
    shutil.rmtree(hub.repos[REPO])
    hub.repos[REPO].mkdir()
    published.write(hub.repos[REPO], "masked-lm", max_shard_size="8KB")
    assert is_the_model(load(tmp_path / "c"), models)
    assert len(list(hub.repos[REPO].glob("*.safetensors"))) > 2
    next(hub.repos[REPO].glob("model-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"has no model-00002.* which model\.safetensors\.index\.json names"):
        load(tmp_path / "d")


def test_a_repository_with_a_pickle_only(hub: Behaviour, models: dict, tmp_path: Path) -> None:
    (hub.repos[REPO] / "model.safetensors").unlink()
    torch.save(models["masked-lm"].state_dict(), hub.repos[REPO] / "pytorch_model.bin")
    assert is_the_model(load(tmp_path / "c"), models)
    assert is_the_model(load(tmp_path / "c", local_files_only=True), models)


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_revision(revision: str, hub: Behaviour, models: dict, tmp_path: Path) -> None:
    assert is_the_model(load(tmp_path / "c", revision=revision), models)


def test_tokenizer_and_inspection_come_from_the_hub_too(hub: Behaviour, tmp_path: Path) -> None:
    path, max_tokens = find_tokenizer(REPO, cache_dir=tmp_path / "c")
    assert path.read_bytes() == b"pieces"
    assert max_tokens == 29
    assert inspect_checkpoint(REPO, cache_dir=tmp_path / "c").problems == ()


@pytest.mark.parametrize("off", ["argument", "environment"])
def test_offline_with_a_cache_and_without(
    off: str, hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any
) -> None:
    load(tmp_path / "c")
    hub.requests.clear()
    if off == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = {"local_files_only": True} if off == "argument" else {}
    assert is_the_model(load(tmp_path / "c", **options), models)
    with pytest.raises(CheckpointError, match=r"not in the cache \(.*empty\).*switched off.*Load it once"):
        load(tmp_path / "empty", **options)
    assert hub.requests == []


def test_a_cached_config_without_weights_offline(hub: Behaviour, tmp_path: Path) -> None:
    find_tokenizer(REPO, cache_dir=tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"\(model\.safetensors\): not in the cache"):
        load(tmp_path / "c", local_files_only=True)


def test_the_environment_variables_of_huggingface_hub_hold(hub: Behaviour, tmp_path: Path) -> None:
    """In a process of its own, since they are read at import."""
    hub.gated, hub.token = frozenset({REPO}), "hf_secret"
    variables = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_secret",
        "TQDM_POSITION": "-1",  # a bar even where standard error is no terminal
    }
    first = child(**variables)
    assert first.stdout.startswith(str(tmp_path / "home" / "hub"))
    assert "model.safetensors: 100%" in first.stderr
    asked = len(hub.requests)
    second = child(**variables, HF_HUB_OFFLINE="1")
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert len(hub.requests) == asked


def child(**variables: str) -> Any:
    """Loads the model in another process, which prints where the weights lie."""
    script = f"from xlmr_core import XLMRobertaForMaskedLM as M; print(M.from_pretrained({REPO!r}).load_report.source)"
    env = published.child_env() | variables
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)


# ---- BGE-M3: two heads in files of their own -------------------------------------------------------------------------


@pytest.fixture
def m3(hub: Behaviour, folders: dict, tmp_path: Path) -> dict[str, Tensor]:
    """Makes the repository one that is published as BGE-M3 is, and gives what its two heads should be."""
    repo = hub.repos[REPO] = tmp_path / "m3"
    parts = write_m3(repo, folders["encoder"])
    return {f"{name}.{leaf}": tensor for name, part in parts.items() for leaf, tensor in part.items()}


def has(model: XLMRobertaForM3, heads: dict[str, Tensor]) -> bool:
    return all(torch.equal(model.state_dict()[key], tensor) for key, tensor in heads.items())


def test_m3_has_its_heads_from_the_same_commit(hub: Behaviour, m3: dict, tmp_path: Path) -> None:
    model = XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c")
    assert has(model, m3)
    names = ("model.safetensors", "sparse_linear.pt", "colbert_linear.pt")
    assert hub.downloads() == ["main/config.json", *(f"{COMMIT}/{name}" for name in names)]
    hub.requests.clear()
    assert has(XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c"), m3)
    assert not any(".pt" in request for request in hub.requests)


@pytest.mark.parametrize("off", ["argument", "environment"])
def test_m3_offline(off: str, hub: Behaviour, m3: dict, tmp_path: Path, monkeypatch: Any) -> None:
    XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c")
    XLMRobertaModel.from_pretrained(REPO, cache_dir=tmp_path / "encoder alone")
    hub.requests.clear()
    if off == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = {"local_files_only": True} if off == "argument" else {}
    assert has(XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c", **options), m3)
    for new_head in (False, True):  # a fresh head would stand where the published one may be
        with pytest.raises(CheckpointError, match=r"\(sparse_linear\.pt\): not in the cache .* Load it once"):
            XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "encoder alone", new_head=new_head, **options)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_head_with_a_wrong_hash_is_refused(
    name: str, hub: Behaviour, m3: dict, tmp_path: Path, monkeypatch: Any
) -> None:
    send = hub_server._Handler.send_body

    def corrupt_one(self: Any, path: Path, start: int, large: bool) -> None:
        self.wfile.write(bytes(path.stat().st_size)) if path.name == name else send(self, path, start, large)

    with monkeypatch.context() as patch:
        patch.setattr(hub_server._Handler, "send_body", corrupt_one)
        with pytest.raises(CheckpointError, match=rf"{name}.* are not those the hub promised"):
            XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c")
    assert has(XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c"), m3)


def test_a_repository_without_these_heads(hub: Behaviour, tmp_path: Path) -> None:
    """Its absence is asked about once for each commit, and only by those who would want them."""
    load(tmp_path / "c")
    assert not any(".pt" in request for request in hub.requests)
    with pytest.raises(CheckpointError, match=r"XLMRobertaForM3 needs the group sparse_linear .*sparse_linear\.pt"):
        XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c")
    hub.requests.clear()
    for offline in (False, True):
        model = XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c", new_head=True, local_files_only=offline)
        assert model.load_report is not None
        assert model.load_report.model_keys["sparse_linear.bias"].status == "filled"
        found = inspect_checkpoint(REPO, cache_dir=tmp_path / "c", local_files_only=offline)
        assert (found.model, found.notes) == ("XLMRobertaForMaskedLM", ())
    assert not any(".pt" in request for request in hub.requests)


def test_inspect_and_convert_see_these_heads(hub: Behaviour, m3: dict, tmp_path: Path) -> None:
    found = inspect_checkpoint(REPO, cache_dir=tmp_path / "c")
    assert found.model == "XLMRobertaForM3"
    assert found.problems == ()
    assert m3.keys() <= {info.key for info in found.keys}
    assert "beside   sparse_linear.pt, colbert_linear.pt" in str(found)
    for to in ("hf", "native"):
        report = convert(REPO, tmp_path / to, to, cache_dir=tmp_path / "c")
        assert m3.keys() <= report.source_keys.keys()
        assert has(XLMRobertaForM3.from_pretrained(tmp_path / to), m3)
    with pytest.raises(CheckpointError, match=r"has no name for .*sparse_linear.*would lose them"):
        convert(REPO, tmp_path / "fairseq", "fairseq", cache_dir=tmp_path / "c", drop=["pooler"])


def test_trim_keeps_these_heads(hub: Behaviour, toy_checkpoint: Path, tmp_path: Path) -> None:
    model = XLMRobertaForM3(XLMRobertaConfig.from_json(toy_checkpoint / "config.json"))
    model.initialize()
    repo = hub.repos[REPO] = tmp_path / "toy m3"
    model.save_pretrained(repo)
    (repo / "sentencepiece.bpe.model").write_bytes((toy_checkpoint / "sentencepiece.bpe.model").read_bytes())
    report = trim(REPO, tmp_path / "small", keep=["▁"], cache_dir=tmp_path / "c")
    assert report.model == "XLMRobertaForM3"
    heads = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("encoder.")}
    assert len(heads) == 4
    assert has(XLMRobertaForM3.from_pretrained(tmp_path / "small"), heads)


def test_offline_a_report_says_what_could_not_be_looked_for(hub: Behaviour, m3: dict, tmp_path: Path) -> None:
    XLMRobertaModel.from_pretrained(REPO, cache_dir=tmp_path / "c")
    offline = {"cache_dir": tmp_path / "c", "local_files_only": True}
    note = "the cache does not show whether the repository has sparse_linear.pt, colbert_linear.pt"
    assert note in str(inspect_checkpoint(REPO, **offline))
    assert note in str(convert(REPO, tmp_path / "out", "hf", **offline))


def test_download_fetches_these_heads(hub: Behaviour, m3: dict, tmp_path: Path) -> None:
    (hub.repos[REPO] / "sentencepiece.bpe.model").write_bytes(b"pieces")
    files = download(REPO, cache_dir=tmp_path / "c")
    assert [file.path.name for file in files][-2:] == ["sparse_linear.pt", "colbert_linear.pt"]
    assert all(file.verified.endswith("as the hub promised") for file in files)
    hub.requests.clear()
    assert has(XLMRobertaForM3.from_pretrained(REPO, cache_dir=tmp_path / "c", local_files_only=True), m3)


# ---- sentence-transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_a_sentence_transformers_repository(place: str, hub: Behaviour, toy_checkpoint: Path, tmp_path: Path) -> None:
    repo = hub.repos[REPO] = sentence_folder(tmp_path / "sentence", toy_checkpoint, place)
    for path in (repo / name for name in ("0_Transformer", "2_Normalize", "2_Dense")):
        if not any(path.iterdir()):
            path.rmdir()  # git keeps no empty folders
    cache = {"cache_dir": tmp_path / "c"}
    expected = XLMRobertaModel.from_pretrained(toy_checkpoint)
    model = XLMRobertaModel.from_pretrained(REPO, **cache)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    assert not any("Pooling" in request for request in hub.requests)
    assert "sentence pooling mean, then length 1, at most 17 tokens" in str(inspect_checkpoint(REPO, **cache))
    assert find_tokenizer(REPO, **cache)[0].read_bytes() == (toy_checkpoint / "sentencepiece.bpe.model").read_bytes()

    report = convert(REPO, tmp_path / "out", "hf", **cache)
    assert_same_sentences(repo, tmp_path / "out", place)
    assert {(Path(place) / name).as_posix() for name in ("sentencepiece.bpe.model", "tokenizer_config.json")} < set(
        report.files
    )
    hub.requests.clear()
    again = convert(REPO, tmp_path / "again", "hf", local_files_only=True, **cache)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")
    assert again.notes == report.notes == ()
    trim(REPO, tmp_path / "small", keep=["▁"], local_files_only=True, **cache)
    assert_same_sentences(repo, tmp_path / "small", place)
    assert hub.requests == []


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_download_fetches_all_of_it(place: str, hub: Behaviour, toy_checkpoint: Path, tmp_path: Path) -> None:
    repo = hub.repos[REPO] = sentence_folder(tmp_path / "sentence", toy_checkpoint, place)
    files = download(REPO, cache_dir=tmp_path / "c")
    root = next((tmp_path / "c").glob("models--*/snapshots/*"))
    own = ("config.json", "model.safetensors", "sentencepiece.bpe.model", "sentence_bert_config.json")
    configuration = ("modules.json", "config_sentence_transformers.json", "1_Pooling/config.json")
    expected = {*configuration, *((Path(place) / name).as_posix() for name in own)}
    assert {file.path.relative_to(root).as_posix() for file in files} == expected
    assert files_of(root).items() <= files_of(repo).items()


def test_offline_the_rest_of_a_sentence_transformers_repository_is_not_known(
    hub: Behaviour, toy_checkpoint: Path, tmp_path: Path
) -> None:
    hub.repos[REPO] = sentence_folder(tmp_path / "sentence", toy_checkpoint, "0_Transformer")
    XLMRobertaModel.from_pretrained(REPO, cache_dir=tmp_path / "c")  # needs modules.json to find the model
    report = convert(REPO, tmp_path / "out", "hf", cache_dir=tmp_path / "c", local_files_only=True)
    [unknown] = [note for note in report.notes if "the network is off" in note]
    for name in ("0_Transformer/sentencepiece.bpe.model", "config_sentence_transformers.json", "1_Pooling/config.json"):
        assert name in unknown
    assert any("are not carried over" in note for note in report.notes)


def test_a_repository_whose_modules_lead_elsewhere(hub: Behaviour, toy_checkpoint: Path, tmp_path: Path) -> None:
    repo = hub.repos[REPO] = sentence_folder(tmp_path / "sentence", toy_checkpoint, "0_Transformer")
    (repo / "modules.json").write_text((repo / "modules.json").read_text().replace("0_Transformer", "../other"))
    with pytest.raises(CheckpointError, match=r"'\.\./other', which is not a folder in it"):
        XLMRobertaModel.from_pretrained(REPO, cache_dir=tmp_path / "c")
    assert not any("other" in request for request in hub.requests)


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_cut_download_is_resumed(hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000)  # what is kept of a cut download
    hub.cuts = [10_000, 1_000, 0]
    assert is_the_model(load(tmp_path / "c"), models)
    weights = f"{COMMIT}/model.safetensors"
    resumed = [f"{weights} bytes=10000-", f"{weights} bytes=11000-", f"{weights} bytes=11000-"]
    assert hub.downloads() == ["main/config.json", weights, *resumed]


def test_a_download_that_keeps_being_cut_leaves_nothing_behind(hub: Behaviour, models: dict, tmp_path: Path) -> None:
    hub.cuts = [5_000] + [0] * 20
    with pytest.raises(CheckpointError, match=r"the download was cut .* Run it again"):
        load(tmp_path / "c")
    assert not list((tmp_path / "c").glob("models--*/snapshots/*/model.safetensors"))
    hub.cuts = []
    assert is_the_model(load(tmp_path / "c"), models)


@pytest.mark.parametrize("path", ["model.safetensors", "sentencepiece.bpe.model"])
def test_a_wrong_hash_is_refused_and_leaves_the_cache(path: str, hub: Behaviour, models: dict, tmp_path: Path) -> None:
    hub.corrupt = True
    for _ in range(2):  # the wrong bytes are not in the cache the second time
        with pytest.raises(CheckpointError, match=r"\d+ bytes are not those the hub promised \(sha256 [0-9a-f]{64}"):
            load(tmp_path / "c") if path == "model.safetensors" else find_tokenizer(REPO, cache_dir=tmp_path / "c")
    hub.corrupt = False
    assert is_the_model(load(tmp_path / "c"), models)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("corrupt", [False, True])
def test_a_file_that_could_not_be_checked_is_checked_by_the_next(
    corrupt: bool, interruption: Any, hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any
) -> None:
    """As after a kill: the file is in the cache, and has no mark."""

    def interrupted(path: Path, kind: str) -> str:
        if kind == "sha256":
            raise interruption
        return hash_of(path, kind)

    hub.corrupt = corrupt
    with monkeypatch.context() as patch:
        patch.setattr(cache, "hash_of", interrupted)
        with pytest.raises((KeyboardInterrupt, CheckpointError)):
            load(tmp_path / "c")
    hub.requests.clear()
    if corrupt:
        for offline in (True, False):
            with pytest.raises(CheckpointError, match="not those the hub promised"):
                load(tmp_path / ("c" if offline else "d"), local_files_only=offline)
        hub.corrupt = False
    assert is_the_model(load(tmp_path / "c"), models)
    assert hub.downloads()[-1:] == [f"{COMMIT}/model.safetensors"] * corrupt


def test_a_file_is_hashed_once(hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any) -> None:
    hashed: list[str] = []

    def counted(path: Path, kind: str) -> str:
        hashed.append(path.name)
        return hash_of(path, kind)

    monkeypatch.setattr(cache, "hash_of", counted)
    for offline in (False, False, True):
        assert is_the_model(load(tmp_path / "c", local_files_only=offline), models)
    assert hashed == ["config.json", "model.safetensors"]
    shutil.rmtree(next((tmp_path / "c").glob(f"models--*/{cache.MARKS}")))  # as another library leaves the cache
    assert is_the_model(load(tmp_path / "c", local_files_only=True), models)
    assert hashed == ["config.json", "model.safetensors"] * 2
    weights = next((tmp_path / "c").glob("models--*/snapshots/*/model.safetensors")).resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="not those the hub promised"):
        load(tmp_path / "c", local_files_only=True)


def test_a_small_file_is_compared_with_its_git_sha1(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    config = hub.repos[REPO] / "config.json"
    promised = hub_server.git_sha1(config)
    config.write_text(config.read_text().replace("0.02", "0.03"))
    monkeypatch.setattr(hub_server, "git_sha1", lambda path: promised)
    with pytest.raises(CheckpointError, match=r"config\.json.* not those the hub promised \(git sha1 [0-9a-f]{40}\)"):
        load(tmp_path)


def test_a_cache_without_links(hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any) -> None:
    """As on Windows: the cache does not keep what was promised, so our mark does, or the hub is asked again."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    assert is_the_model(load(tmp_path / "c"), models)
    assert not list((tmp_path / "c").glob("models--*/blobs/*"))
    hub.requests.clear()
    [weights] = (tmp_path / "c").glob("models--*/snapshots/*/model.safetensors")
    assert verify(weights) == "sha256 as the hub promised"
    assert is_the_model(load(tmp_path / "c", revision=COMMIT), models)
    assert hub.requests == []
    weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
    assert verify(weights).startswith("not checked")
    with pytest.raises(CheckpointError, match="not those the hub promised"):
        load(tmp_path / "c", revision=COMMIT)
    assert not weights.exists()


# ---- a hostile hub ---------------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("honest", [0, 2])  # answers before: the path is that of config.json, or of the weights
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("place", ["{home}/thesis.txt", "../../../home/thesis.txt", "thesis.txt"])
@pytest.mark.parametrize("get", [load, lambda cache: download(REPO, cache_dir=cache)])
def test_an_etag_that_is_a_path_is_refused(
    get: Any, place: str, exists: bool, honest: int, hub: Behaviour, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if exists:
        (home / "thesis.txt").write_text("years of work")
    hub.etags = [None] * honest + [place.format(home=home)] * 9
    before = everything_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"the ETag '.*thesis\.txt', which is neither.* Nothing was fetched"):
        get(tmp_path / "c")
    assert {name for name in everything_in(tmp_path) if Path(name).parts[0] != "c"} == before
    assert not list((tmp_path / "c").rglob("*thesis*"))
    assert len([request for request in hub.downloads() if "safetensors" in request]) == 0


@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_a_commit_that_is_a_path_is_refused(name: str, hub: Behaviour, tmp_path: Path) -> None:
    """Where a file is missing, huggingface_hub notes that in a folder named as the commit."""
    if name == "modules.json":
        (hub.repos[REPO] / "config.json").unlink()
    hub.commit = "../../../../elsewhere"
    before = everything_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"the commit '\.\./\.\./.*which is not one"):
        load(tmp_path / "in" / "c")
    assert everything_in(tmp_path) == before


def test_a_snapshot_that_leads_out_of_the_cache_loses_its_link_only(hub: Behaviour, tmp_path: Path) -> None:
    """As a version without these checks may have left it."""
    load(tmp_path / "c")
    (tmp_path / "thesis.txt").write_text("years of work")
    weights = next((tmp_path / "c").glob("models--*/snapshots/*/model.safetensors"))
    weights.unlink()
    weights.symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(CheckpointError, match="leads out of the cache"):
        load(tmp_path / "c", local_files_only=True)
    assert not weights.is_symlink()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_wait_is_refused(status: int, hub: Behaviour, models: dict, tmp_path: Path) -> None:
    load(tmp_path / "c")
    hub.fail_with, hub.headers = status, {"Retry-After": "3600"}
    with pytest.raises(CheckpointError, match=rf"error \({status}\) and asks to wait 3600 s; at most 60 s"):
        load(tmp_path / "empty")
    assert is_the_model(load(tmp_path / "c"), models)


def test_short_waits_are_told_and_add_up(hub: Behaviour, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.fail_with, hub.headers = 503, {"Retry-After": "25"}
    with pytest.raises(CheckpointError, match=r"asks to wait 25 s; at most 60 s in all"):
        load(tmp_path / "c")
    assert capsys.readouterr().err == "the hub asks to wait 25 s (503)\n" * 2


def test_a_wait_during_the_download(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    """Metadata came, and the body is refused."""
    answer = hub_server._Handler.answer

    def busy(self: Any) -> None:
        if self.command == "GET":
            self.error(429)
        else:
            answer(self)

    monkeypatch.setattr(hub_server._Handler, "answer", busy)
    hub.headers = {"ratelimit": '"resolvers";r=0;t=300'}
    with pytest.raises(CheckpointError, match=r"error \(429\) and asks to wait 300 s"):
        load(tmp_path / "c")


def test_a_body_that_does_not_end_is_refused(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000)

    def endless(self: Any, path: Path, *, large: bool) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{"0" * 40}"')
        if self.command == "HEAD":
            self.send_header("Content-Length", "5000")
        self.end_headers()
        self.close_connection = True
        if self.command == "GET":
            with suppress(OSError):
                for _ in range(10_000):  # an end after all, lest a failing test fill the disk
                    self.wfile.write(bytes(1_000))

    monkeypatch.setattr(hub_server._Handler, "send", endless)
    with pytest.raises(CheckpointError, match="the hub sent more than 5000 bytes"):
        load(tmp_path / "c")
    assert not list((tmp_path / "c").glob("models--*/snapshots/*/*"))


def test_silence_is_told(
    hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    send = hub_server._Handler.send_body

    def slowly(self: Any, path: Path, start: int, large: bool) -> None:
        threading.Event().wait(0.3 * large)  # time.sleep does nothing here
        send(self, path, start, large)

    monkeypatch.setattr(hub_server._Handler, "send_body", slowly)
    monkeypatch.setattr(guard, "SILENCE", 0.1)
    assert is_the_model(load(tmp_path / "c"), models)
    assert "the hub sent less than 10,485,760 bytes in the last 0.1 s. Ctrl-C stops" in capsys.readouterr().err


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_no_such_repository(hub: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/other \(config\.json\): there is no such repository"):
        XLMRobertaModel.from_pretrained("org/other", cache_dir=tmp_path)


def test_no_such_revision(hub: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision 'v9'"):
        load(tmp_path, revision="v9")


def test_a_gated_repository(hub: Behaviour, models: dict, tmp_path: Path) -> None:
    hub.gated, hub.token = frozenset({REPO}), "hf_secret"
    with pytest.raises(CheckpointError, match="is gated: accept its conditions"):
        load(tmp_path / "c", token=False)
    with pytest.raises(CheckpointError, match="is gated"):
        load(tmp_path / "c", token="hf_wrong")
    assert is_the_model(load(tmp_path / "c", token="hf_secret"), models)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "there is no such repository .* or it is private|refuses access"),
        (403, r"refuses access \(403\): log in"),
        (429, r"answered with an error \(429\)"),
        (500, r"answered with an error \(500\): try again later"),
        (503, r"answered with an error \(503\)"),
    ],
)
def test_an_error_status(status: int, message: str, hub: Behaviour, models: dict, tmp_path: Path) -> None:
    load(tmp_path / "c")
    hub.fail_with = status
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "empty")
    assert is_the_model(load(tmp_path / "c"), models)  # a cache helps over a hub that is down


def test_a_hub_that_cannot_be_reached(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    turn_to(f"http://127.0.0.1:{port}", monkeypatch)
    with pytest.raises(CheckpointError, match=f"the hub at http://127.0.0.1:{port} cannot be reached"):
        load(tmp_path)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_in_the_catalogue_is_its_hub_id(hub: Behaviour, models: dict, tmp_path: Path, monkeypatch: Any) -> None:
    hub.repos["FacebookAI/xlm-roberta-base"] = hub.repos[REPO]
    where = {"cache_dir": tmp_path / "c"}
    assert is_the_model(XLMRobertaForMaskedLM.from_pretrained("xlm-roberta-base", **where), models)
    assert find_tokenizer("xlm-roberta-base", **where)[0].read_bytes() == b"pieces"
    assert inspect_checkpoint("xlm-roberta-base", **where).problems == ()
    convert("xlm-roberta-base", tmp_path / "native", "native", **where)
    assert {path.name for path in (tmp_path / "c").glob("models--*")} == {"models--FacebookAI--xlm-roberta-base"}

    hub.requests.clear()
    shutil.copytree(hub.repos[REPO], tmp_path / "xlm-roberta-base")  # what is on disk goes first
    monkeypatch.chdir(tmp_path)
    assert is_the_model(XLMRobertaForMaskedLM.from_pretrained("xlm-roberta-base", cache_dir=tmp_path / "d"), models)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("multilingual-e5-small", "intfloat/multilingual-e5-small cannot be used here: it is BERT"),
        ("xlmr.base", r"xlmr.base is not on the hub: fetch https://.*xlmr\.base\.tar\.gz yourself"),
    ],
)
def test_a_name_that_the_catalogue_refuses(name: str, message: str, hub: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        XLMRobertaModel.from_pretrained(name, cache_dir=tmp_path)
    assert hub.requests == []


def test_a_name_without_a_slash_is_asked_for_once(hub: Behaviour, tmp_path: Path) -> None:
    hub.fail_with = 503
    with pytest.raises(CheckpointError, match=r"answered with an error \(503\).* near: xlmr-tiny"):
        XLMRobertaModel.from_pretrained("xlmr-tinny", cache_dir=tmp_path)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("state", ["answers", "off", "gone"])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("xlm-roberta-bsae", "; near: xlm-roberta-base"),
        ("xlmr-tny", "; near: xlmr-tiny"),
        ("qqqqqq", r" \(`xlmr models` lists the known ones\)$"),
    ],
)
def test_a_name_that_is_nowhere(
    name: str, near: str, state: str, hub: Behaviour, tmp_path: Path, monkeypatch: Any
) -> None:
    if state == "gone":
        turn_to("http://127.0.0.1:9", monkeypatch)
    told = {"answers": "there is no such repository", "off": "not in the cache", "gone": "cannot be reached"}[state]
    message = f"{told}.* There is no file or folder '{name}' here, nor is it a name in the catalogue{near}"
    with pytest.raises(CheckpointError, match=message):
        XLMRobertaModel.from_pretrained(name, cache_dir=tmp_path, local_files_only=state == "off")


def test_nothing_is_near_a_hub_id(hub: Behaviour, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        XLMRobertaModel.from_pretrained("org/tny", cache_dir=tmp_path)
    assert "catalogue" not in str(raised.value)


@pytest.mark.parametrize("debug", [False, True])
def test_the_attempts_are_not_told_on_the_command_line(debug: bool, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub decides at import."""
    script = "import sys, time; time.sleep = lambda seconds: None; from xlmr_core.cli import main; main(sys.argv[1:])"
    command = [*["--debug"] * debug, "fill-mask", "<mask>", "--model", "org/tiny", "--cache-dir", str(tmp_path)]
    environment = published.child_env(HF_ENDPOINT="http://127.0.0.1:9")
    environment.pop("HF_HUB_VERBOSITY", None)  # another test's command may have set it
    run = subprocess.run(
        [sys.executable, "-c", script, *command], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 1
    assert ("Retrying" in run.stderr) == debug
    if not debug:
        assert len(run.stderr.splitlines()) == 1
        assert "cannot be reached" in run.stderr


def test_a_server_that_is_no_hub(tmp_path: Path, hub: Behaviour, monkeypatch: Any) -> None:
    monkeypatch.setattr("checkpoint.hub_server._Handler.send", lambda self, path, large: self.error(200))
    with pytest.raises(CheckpointError, match=r"X-Repo-Commit"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"org/tiny has no config\.json"),
        ("model.safetensors", r"has no weights that can be read: none of model\.safetensors, .*pytorch_model\.bin"),
    ],
)
def test_a_file_is_missing(missing: str, message: str, hub: Behaviour, tmp_path: Path) -> None:
    (hub.repos[REPO] / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_the_tokenizer_is_missing(hub: Behaviour, tmp_path: Path) -> None:
    (hub.repos[REPO] / "sentencepiece.bpe.model").unlink()
    with pytest.raises(CheckpointError, match=r"org/tiny has no sentencepiece\.bpe\.model"):
        find_tokenizer(REPO, cache_dir=tmp_path)


def test_another_architecture(hub: Behaviour, tmp_path: Path) -> None:
    """multilingual-e5-small has XLM-R's tokenizer and is BERT."""
    (hub.repos[REPO] / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"model_type 'bert' is not XLM-RoBERTa"):
        load(tmp_path)
    assert not any("model.safetensors" in request for request in hub.requests)  # told before a gigabyte is fetched


def test_a_truncated_file_on_the_hub_itself(hub: Behaviour, tmp_path: Path) -> None:
    path = hub.repos[REPO] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated, corrupt"):
        load(tmp_path)
