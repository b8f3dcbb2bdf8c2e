"""The catalogue says what is so: read strictly, held against the code with random weights, and verified on download."""

import json
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import reference
import torch
from checkpoint import published
from checkpoint.hub_server import COMMIT, Behaviour, serve, sha256
from checkpoint.test_hub import turn_to
from safetensors import safe_open

from xlmr_core.checkpoint import CheckpointError, catalogue
from xlmr_core.checkpoint.catalogue import Published, catalogue_file, find_published, read_catalogue
from xlmr_core.checkpoint.download import download
from xlmr_core.checkpoint.loading import tied_keys
from xlmr_core.checkpoint.mapping import Source, make_plan, plan_export
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM, model_classes
from xlmr_core.model import XLMRobertaModel

ENTRIES, REFUSED = read_catalogue().published, read_catalogue().refused
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def class_of(entry: Published) -> type:
    """Our class for the checkpoint: the one that the layouts say reads its architecture, and the files beside it."""
    [cls] = [
        cls
        for cls in model_classes()
        if entry.architecture in cls.spec.architectures(False) + cls.spec.architectures(True)
        and {group.file for group in cls.spec.groups if group.file} == set(entry.extra_files)
    ]
    return cls


def options_of(entry: Published) -> dict[str, Any]:
    return {"add_pooling_layer": bool(entry.pooler)} if class_of(entry) is XLMRobertaModel else {}


def distinct() -> dict[str, Published]:
    """One entry for every geometry, layout and kind of head in the catalogue."""
    found: dict[str, Published] = {}
    for entry in ENTRIES.values():
        kind = (entry.layout, entry.architecture, entry.labels, entry.pooler, entry.config)
        found.setdefault(repr(kind), entry)
    return {entry.name: entry for entry in found.values()}


DISTINCT = distinct()
every_kind = pytest.mark.parametrize("entry", DISTINCT.values(), ids=DISTINCT)


# ---- the entries are true of the code --------------------------------------------------------------------------------


@every_kind
def test_the_true_geometry(entry: Published) -> None:
    """Full size, without memory: the shapes that tell one geometry from another, and the number of parameters."""
    config = entry.config
    with torch.device("meta"):
        model = class_of(entry)(config, **options_of(entry))
    encoder = getattr(model, "encoder", model)
    assert encoder.embeddings.word_embeddings.weight.shape == (entry.vocab_size, config.hidden_size)
    assert encoder.embeddings.position_embeddings.weight.shape == (entry.max_tokens + 2, config.hidden_size)
    assert len(encoder.layers) == config.num_hidden_layers
    assert encoder.layers[-1].feed_forward.up_proj.weight.shape == (4 * config.hidden_size, config.hidden_size)
    assert entry.architecture.startswith("XLMRobertaXL") == config.norm_first
    if entry.parameters is not None:
        elsewhere = ("sparse_linear.", "colbert_linear.", "pooler.")
        inside = [tensor for name, tensor in model.named_parameters() if not name.startswith(elsewhere)]
        pooler = config.hidden_size * (config.hidden_size + 1) if entry.pooler else 0  # also where the class has none
        assert sum(tensor.numel() for tensor in inside) + pooler == entry.parameters


@every_kind
def test_its_layout_has_a_key_for_every_tensor_and_is_recognised(entry: Published) -> None:
    """Keys alone, at the true depth: written out in the layout that the catalogue names, and read back."""
    cls = class_of(entry)
    config = entry.config
    with torch.device("meta"):
        model = cls(config, **options_of(entry))
    tied = tied_keys(model)
    sources = {ours: Source(ours) for ours in model.state_dict() if ours not in tied}
    exports = plan_export(entry.layout, config, cls.spec, cls.__name__, sources).exports
    keys = [export.key for export in exports]
    assert len(keys) == len(set(keys))
    plan = make_plan(config, keys, cls.spec, cls.__name__)
    assert plan.problems == []
    assert (plan.layout.family, plan.config.norm_first) == (entry.layout, config.norm_first)
    assert plan.sources.keys() | plan.zeros.keys() == sources.keys()


def test_known_counts_are_among_them() -> None:
    counts = {entry.name: entry.parameters for entry in ENTRIES.values() if entry.parameters}
    assert counts["xlm-roberta-base"] == 278_885_778
    assert counts["xlm-roberta-large"] == 561_192_082
    assert counts["bge-reranker-v2-m3"] == 567_755_777
    assert counts["multilingual-e5-base"] == 278_043_648
    assert counts["bge-m3"] == 567_754_752


def shrunken(config: XLMRobertaConfig) -> XLMRobertaConfig:
    """The true number of layers, heads and positions, the true ratios, two features a head and few tokens."""
    width = 2 * config.num_attention_heads
    return replace(config, vocab_size=61, hidden_size=width, intermediate_size=4 * width)


@every_kind
def test_it_is_saved_and_loaded_to_the_same_numbers(entry: Published, tmp_path: Path) -> None:
    cls = class_of(entry)
    model = cls(shrunken(entry.config), **options_of(entry)).eval()
    reference.randomize(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [entry.architecture]
    again = cls.from_pretrained(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        layers = {int(match[1]) for key in file.keys() if (match := re.search(r"layer\.(\d+)\.", key))}  # noqa: SIM118
    assert layers == set(range(entry.config.num_hidden_layers))


def test_sizes_of_files_are_those_of_the_parameters() -> None:
    """A header, or a pickle's index, takes a few dozen kilobytes beside the numbers."""
    checked = 0
    for entry in ENTRIES.values():
        for name in WEIGHTS:
            size = entry.files[name].size if name in entry.files else None
            if size is not None and entry.parameters and entry.dtype:
                assert 0 < size - entry.parameters * BYTES[entry.dtype] < 200_000, (entry.id, name)
                checked += 1
    assert checked == 5


@pytest.mark.parametrize("hub_id", REFUSED)
def test_what_is_refused_has_a_reason(hub_id: str) -> None:
    assert REFUSED[hub_id]
    for name in (hub_id, hub_id.rpartition("/")[2]):
        with pytest.raises(CheckpointError, match=re.escape(f"{hub_id} cannot be used here: {REFUSED[hub_id]}")):
            find_published(name)


def test_facts_that_others_lean_on() -> None:
    assert (len(ENTRIES), len(REFUSED)) == (39, 4)
    e5 = find_published("multilingual-e5-base")
    assert e5 is ENTRIES.get("intfloat/multilingual-e5-base") or e5 == ENTRIES["intfloat/multilingual-e5-base"]
    assert e5 is not None
    assert (e5.pooling, e5.normalize, e5.prompts) == ("mean", True, {"query": "query: ", "passage": "passage: "})
    m3 = ENTRIES["BAAI/bge-m3"]
    assert (m3.pooling, m3.max_tokens, m3.extra_files) == ("cls", 8192, ("colbert_linear.pt", "sparse_linear.pt"))
    assert ENTRIES["facebook/xlm-roberta-xl"].vocab_size == 250_880
    assert "intfloat/multilingual-e5-small" in REFUSED
    assert find_published("no-such-model") is None


def test_hashes_of_the_shared_files(shared: Path) -> None:
    """The vocabulary and config at hand are the pinned ones, and the rest is what the collected manifests say."""
    base = ENTRIES["FacebookAI/xlm-roberta-base"]
    folder = shared / "tokenizer/xlm-roberta-base"
    for name in ("config.json", "sentencepiece.bpe.model"):
        assert base.files[name].sha256 == sha256(folder / name)
        assert base.files[name].size == (folder / name).stat().st_size
    assert base.config == XLMRobertaConfig.from_json(folder / "config.json")
    manifests = json.loads((shared / "golden/published.json").read_text())["file_hashes"]
    compared = 0
    for key, known in manifests.items():
        repo, _, revision = key.partition("@")
        if repo not in ENTRIES:
            continue
        entry = ENTRIES[repo]
        assert revision in ("", entry.revision)
        assert known.get("params") in (None, entry.parameters)
        for name in entry.files.keys() & known.keys():
            assert [entry.files[name].size, entry.files[name].sha256] == known[name], (repo, name)
            compared += 1
    assert compared >= 10


def test_the_checks_that_are_named_exist() -> None:
    root = Path(__file__).parents[2]
    named = {check for entry in ENTRIES.values() for check in entry.checks}
    assert named
    assert all((root / check).is_file() for check in named)


# ---- reading strictly ------------------------------------------------------------------------------------------------

GEOMETRY = (
    "tiny = { num_hidden_layers = 3, hidden_size = 24, num_attention_heads = 4, intermediate_size = 40, "
    "layer_norm_eps = 0.003 }"
)
GOOD = f"""[geometries]
{GEOMETRY}
[[checkpoints]]
id = "org/tiny"
revision = "{COMMIT}"
architecture = "XLMRobertaForMaskedLM"
layout = "hf"
geometry = "tiny"
vocab_size = 53
max_position_embeddings = 31
max_tokens = 29
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_small_catalogue(tmp_path: Path) -> None:
    [entry] = read_catalogue(written(tmp_path / "c.toml", GOOD)).published.values()
    assert (entry.id, entry.name, entry.head) == ("org/tiny", "tiny", "masked-lm")
    assert entry.config.hidden_size == 24
    assert entry.config.norm_first is False
    unknown = {"url", "dtype", "parameters", "pooler", "labels", "pooling", "normalize", "note"}
    assert {field.name for field in fields(entry) if getattr(entry, field.name) is None} == unknown


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[geometries]", "[geometries", r"Expected|Invalid|expected"),
        ("[geometries]", "[shapes]", "'geometries' is missing"),
        ("[[checkpoints]]", "[[models]]", "'checkpoints' is missing"),
        ('id = "org/tiny"', "", "'id' is missing"),
        ('layout = "hf"', "", r"\(org/tiny\): .*missing .*'layout'"),
        ('layout = "hf"', 'layout = "hp"', r"layout 'hp' is not one of \('hf', "),
        ("vocab_size = 53", 'vocab_size = "53"', "vocab_size must be of type int, got '53'"),
        ("vocab_size = 53", "vocab_size = true", "vocab_size must be of type int, got True"),
        ("vocab_size = 53", "vocab_size = 53\nvocabulary = 53", "unexpected .*'vocabulary'"),
        ('geometry = "tiny"', 'geometry = "huge"', "'huge' is missing or not known"),
        ("hidden_size = 24", "hidden_size = 25", "a multiple of num_attention_heads"),
        ("hidden_size = 24", "hidden = 24", "hidden"),
        ("max_tokens = 29", "max_tokens = 31", "max_tokens should be 29"),
        (COMMIT, "main", "revision is not a commit"),
        ("ForMaskedLM", "ForMusic", "architecture 'XLMRobertaForMusic' is not supported"),
        ("max_tokens = 29", 'max_tokens = 29\nlabels = 3\nlabel_names = ["a", "b"]', "labels and label_names"),
        ("max_tokens = 29", 'max_tokens = 29\npooling = ["cls"]', "pooling .* is not one of"),
        ("max_tokens = 29", 'max_tokens = 29\nfiles = { a = { sha256 = "ab" } }', "a: sha256 'ab' is not 64 hex"),
        ("max_tokens = 29", "max_tokens = 29\nfiles = { a = { size = 0 } }", "a: size 0"),
        ("max_tokens = 29", "max_tokens = 29\nfiles = { a = { md5 = 0 } }", "md5"),
        (f'revision = "{COMMIT}"', "files = { a = { size = 1 } }", "files are pinned, but there is no revision"),
    ],
)
def test_a_bad_catalogue(before: str, after: str, message: str, tmp_path: Path) -> None:
    assert before in GOOD
    path = written(tmp_path / "c.toml", GOOD.replace(before, after))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_catalogue(path)
    assert str(path) in str(caught.value)


def test_a_name_twice(tmp_path: Path) -> None:
    second = GOOD.partition("[[checkpoints]]")[2].replace("org/tiny", "other/tiny")
    with pytest.raises(CheckpointError, match="another entry has the name tiny"):
        read_catalogue(written(tmp_path / "c.toml", f"{GOOD}[[checkpoints]]{second}"))


def test_it_is_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: Any) -> None:
    assert catalogue_file().name == "catalogue.toml"
    monkeypatch.setattr("xlmr_core.paths.resources.files", lambda package: tmp_path / "xlmr_core")
    with pytest.raises(CheckpointError, match="not in this installation"):
        catalogue_file()
    for place in (tmp_path / "weights", tmp_path / "xlmr_core" / "weights"):  # the package's own comes first
        place.mkdir(parents=True)
        written(place / "catalogue.toml", GOOD)
        assert catalogue_file() == place / "catalogue.toml"


# ---- downloading -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: Any) -> Iterator[Behaviour]:
    """A server with one repository, which the catalogue has with its true sizes and hashes."""
    repo = tmp_path / "repo"
    published.write(repo, "masked-lm")
    (repo / "sentencepiece.bpe.model").write_bytes(b"pieces")
    (repo / "extra.pt").write_bytes(b"more")
    files = {path.name: path for path in repo.iterdir() if path.name != "generation_config.json"}
    pins = "\n".join(
        f'"{name}" = {{ size = {path.stat().st_size}, sha256 = "{sha256(path)}" }}' for name, path in files.items()
    )
    path = written(tmp_path / "c.toml", f'{GOOD}extra_files = ["extra.pt"]\n[checkpoints.files]\n{pins}\n')
    monkeypatch.setattr(catalogue, "catalogue_file", lambda: path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    huggingface_hub.utils.disable_progress_bars()
    with serve(Behaviour({"org/tiny": repo})) as behaviour:
        turn_to(behaviour.url, monkeypatch)
        yield behaviour
        huggingface_hub.close_session()
    huggingface_hub.utils.enable_progress_bars()


NAMES = ["config.json", "model.safetensors", "sentencepiece.bpe.model", "extra.pt"]


@pytest.mark.parametrize("name", ["tiny", "org/tiny"])
def test_everything_is_fetched_at_the_pinned_commit_and_verified(name: str, hub: Behaviour, tmp_path: Path) -> None:
    files = download(name, cache_dir=tmp_path / "c")
    assert [file.path.name for file in files] == NAMES
    assert {file.verified for file in files} == {"verified: sha256 as in the catalogue"}
    assert hub.downloads() == [f"{COMMIT}/{name}" for name in NAMES]
    hub.requests.clear()
    assert download(name, cache_dir=tmp_path / "c", local_files_only=True) == files
    assert hub.requests == []
    XLMRobertaForMaskedLM.from_pretrained("org/tiny", cache_dir=tmp_path / "c", revision=COMMIT, local_files_only=True)


def test_a_pin_is_for_one_path_and_not_for_each_file_of_that_name(hub: Behaviour, tmp_path: Path) -> None:
    """The settings of a pooling are in a config.json of their own."""
    modules = [{"type": "models.Transformer", "path": ""}, {"type": "models.Pooling", "path": "1_Pooling"}]
    repo = hub.repos["org/tiny"]
    (repo / "1_Pooling").mkdir()
    (repo / "modules.json").write_text(json.dumps(modules))
    (repo / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    verified = {(file.path.parent.name, file.path.name): file.verified for file in download("tiny", cache_dir=tmp_path)}
    assert verified[COMMIT, "config.json"] == "verified: sha256 as in the catalogue"
    assert verified["1_Pooling", "config.json"] == "verified: git sha1 as the hub promised"


def test_a_cut_download_goes_on_where_it_stopped(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    hub.cuts = [10_000]
    assert len(download("tiny", cache_dir=tmp_path / "c")) == 4
    assert f"{COMMIT}/model.safetensors bytes=10000-" in hub.downloads()


def test_other_bytes_than_the_catalogue_has_are_thrown_away(hub: Behaviour, tmp_path: Path) -> None:
    """The hub serves, and vouches for, a file that is not the published one."""
    path = hub.repos["org/tiny"] / "model.safetensors"
    honest = path.read_bytes()
    path.write_bytes(honest[:-4] + b"evil")
    with pytest.raises(CheckpointError, match=r"org/tiny \(model.safetensors\).* are not those in the catalogue"):
        download("tiny", cache_dir=tmp_path / "c")
    assert not list((tmp_path / "c").rglob("model.safetensors"))
    path.write_bytes(honest)
    assert len(download("tiny", cache_dir=tmp_path / "c")) == 4


def test_a_cached_file_that_has_gone_bad_is_found(hub: Behaviour, tmp_path: Path) -> None:
    weights = download("tiny", cache_dir=tmp_path / "c")[1].path
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    with pytest.raises(CheckpointError, match="thrown away"):
        download("tiny", cache_dir=tmp_path / "c")
    assert len(download("tiny", cache_dir=tmp_path / "c")) == 4


def test_a_wrong_size_is_told_without_hashing(hub: Behaviour, tmp_path: Path, monkeypatch: Any) -> None:
    with (hub.repos["org/tiny"] / "sentencepiece.bpe.model").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CheckpointError, match=r"its 7 bytes are not those in the catalogue \(size 6, "):
        download("tiny", cache_dir=tmp_path / "c")


def test_a_missing_extra_file(hub: Behaviour, tmp_path: Path) -> None:
    (hub.repos["org/tiny"] / "extra.pt").unlink()
    with pytest.raises(CheckpointError, match=r"org/tiny has no extra\.pt"):
        download("tiny", cache_dir=tmp_path / "c")


def test_a_repository_that_is_not_in_the_catalogue(hub: Behaviour, tmp_path: Path) -> None:
    hub.repos["org/new"] = hub.repos["org/tiny"]
    files = download("org/new", cache_dir=tmp_path / "c")
    assert [file.path.name for file in files] == NAMES[:3]
    small, large = "verified: git sha1 as the hub promised", "verified: sha256 as the hub promised"
    assert [file.verified for file in files] == [small, large, large]
    assert hub.downloads()[0] == "main/config.json"


def test_tokenizer_json_is_fetched_where_there_is_one(hub: Behaviour, tmp_path: Path) -> None:
    (hub.repos["org/tiny"] / "tokenizer.json").write_text("{}")
    assert [file.path.name for file in download("tiny", cache_dir=tmp_path / "c")] == [*NAMES, "tokenizer.json"]


def test_shards(hub: Behaviour, tmp_path: Path) -> None:
    repo = tmp_path / "shards"
    published.write(repo, "masked-lm", max_shard_size="8KB")
    (repo / "sentencepiece.bpe.model").write_bytes(b"pieces")
    hub.repos["org/sharded"] = repo
    files = download("org/sharded", cache_dir=tmp_path / "c")
    assert {path.name for path in repo.glob("*.safetensors")} < {file.path.name for file in files}
    assert all(file.path.is_file() for file in files)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("multilingual-e5-small", "cannot be used here: it is BERT"),
        ("jinaai/jina-embeddings-v3", "cannot be used here: rotary"),
        ("xlmr.large", r"not on the hub: fetch https://.*xlmr\.large\.tar\.gz"),
        ("xlm-roberta-bas", "neither in the catalogue .* nor a hub id; near: xlm-roberta-base"),
        ("qqq", r"nor a hub id$"),
    ],
)
def test_what_cannot_be_fetched_is_told_before_the_network_is_asked(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        download(name, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
