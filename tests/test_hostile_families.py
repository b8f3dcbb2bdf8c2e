"""Broken and hostile files by the thousand, from seeds: each command reads them or says what is wrong, and ends soon.

HOSTILE_CASES=1200 HOSTILE_SEED=1 pytest tests/test_hostile_families.py -m slow -s
"""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_language import sentences

from xlmr_core.checkpoint.fairseq import settings_for
from xlmr_core.cli import main
from xlmr_core.config import XLMRobertaConfig

CASES = int(os.environ.get("HOSTILE_CASES", "1200"))  # of the slow run
SEED = int(os.environ.get("HOSTILE_SEED", "1"))
SAMPLE = 2  # cases of each family by default
SECONDS = 20  # that one case may take, on a busy machine
ODD: tuple[Any, ...] = (
    *(0, 1, -1, 2**31, 2**62, 10**30, 10**400, 0.5, float("inf"), float("nan"), 1e-300, None, True, False),
    *("", "4", "gelu", "x" * 5_000, "\ud800", [], [1], [None], {}, {"0": "A"}, {"a": [1]}),
)
DTYPES = ("F32", "F16", "I64", "F8_E4M3", "F4", "F6_E2M3", "C64", "BOOL", "F99", 3, None)
Case = Callable[[random.Random, Path], list[str]]  # changes a copy of a checkpoint; gives the command to run


# ---- the families ---------------------------------------------------------------------------------------------------


def odd_config(chance: random.Random, folder: Path) -> list[str]:
    """Fields of config.json with values of any kind, some missing, some unknown."""
    values = json.loads((folder / "config.json").read_text())
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*values, "id2label", "num_labels", "position_embedding_type", "rope_theta"])
        values[name] = chance.choice(ODD)
    if chance.random() < 0.2:
        del values[chance.choice(list(values))]
    (folder / "config.json").write_text(json.dumps(values))
    return reading(chance, folder)


def damaged_text(chance: random.Random, folder: Path) -> list[str]:
    """config.json, dict.txt, the index or the tokenizer: cut, changed, deep, empty, or of gigabytes."""
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "a.safetensors")}
    name = chance.choice(["config.json", "dict.txt", "model.safetensors.index.json", "sentencepiece.bpe.model"])
    path = folder / name
    if name.endswith("index.json"):
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        path.write_text(json.dumps(index))
    if name == "dict.txt":
        path.write_text("▁a 1\n")
    damage(chance, path)
    return reading(chance, folder)


def damage(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    kind = chance.randrange(6)
    if kind == 0:
        del data[chance.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        data = bytearray(
            chance.choice([b"", b"[]", b"null", b"5", b"<html>", b"\xff", b"[" * 50_000, b'{"a":' * 50_000])
        )
    elif kind == 3:
        place = chance.randrange(len(data))
        data[place:place] = chance.randbytes(chance.randint(1, 100))
    elif kind == 4:
        data *= 2
    path.write_bytes(data)
    if kind == 5:
        os.truncate(path, 2**34)  # sparse: it takes no room


def damaged_weights(chance: random.Random, folder: Path) -> list[str]:
    """A weights file of any container, damaged anywhere, most often where its names are."""
    path = repacked(folder, chance.choice(["safetensors", "zip", "old", "fairseq"]))
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        reach = len(data) if chance.random() < 0.3 else min(len(data), 3_000)
        data[chance.randrange(reach)] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    path.write_bytes(data)
    return reading(chance, folder)


def odd_header(chance: random.Random, folder: Path) -> list[str]:
    """A safetensors file whose header has other types, shapes, places and keys."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for key in chance.sample(sorted(header), 2):
        entry = header[key]
        kind = chance.randrange(5)
        if kind == 0:
            entry["dtype"] = chance.choice(DTYPES)
        elif kind == 1:
            entry["shape"] = chance.choice([[], [0], [-1], [2**63], [2**31, 2**33], "16", [1.5], [1] * 500])
        elif kind == 2:
            entry["data_offsets"] = chance.choice([[0, 0], [64, 0], [0, 2**40], [-1, 63], [0], None])
        elif kind == 3:
            header[chance.choice(["", "\x1b[2J", "é" * 2_000, "a" * 10_000_000, key + "_", "\n"])] = header.pop(key)
        else:
            del header[key]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return reading(chance, folder)


def packed_numbers(chance: random.Random, folder: Path) -> list[str]:
    """One tensor has numbers of a type that torch cannot compute with."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    entry = header[chance.choice([key for key in header if key.endswith("weight")])]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    dtype, numbers = chance.choice(
        [("F4", 2 * size), ("C64", size // 8), ("U8", size), ("F8_E5M2", size), ("I16", size // 2)]
    )
    entry |= {"dtype": dtype, "shape": chance.choice([entry["shape"], [numbers]])}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return reading(chance, folder)


def random_opcodes(chance: random.Random, folder: Path) -> list[str]:
    """A pickle of opcodes at random, with the names and values that bombs are made of."""
    text = [b"X" + struct.pack("<I", len(word)) + word for word in (b"hex", b"punycode", b"latin1", b"storage", b"a")]
    names = [
        "_codecs\nencode",
        "collections\nOrderedDict",
        "builtins\nbytearray",
        "torch\nTensor",
        "torch\nFloatStorage",
    ]
    names += [
        "torch._utils\n_rebuild_tensor_v2",
        "torch._tensor\n_rebuild_from_type_v2",
        "argparse\nNamespace",
        "os\nsystem",
    ]
    number = b"\x8a\x08" + struct.pack("<q", chance.choice([2**61 - 1, 2**62, 2**40, 7]))
    calls = [f"c{name}\n".encode() for name in names]
    parts = [
        *text,
        *calls,
        number,
        b"}",
        b"]",
        b")",
        b"(",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"\x81",
        b"b",
        b"s",
        b"u",
    ]
    parts += [b"a", b"e", b"Q", b"q\x00", b"h\x00", b"K\x01", b"N", text[0] + b"\x86R"]
    body = b"".join(chance.choice(parts) for _ in range(chance.randint(1, 60)))
    if chance.random() < 0.3:
        body = calls[0] * 40 + text[4] + (text[0] + b"\x86R") * 40
    with_pickle(folder, b"\x80\x02" + body + b".", zipped=chance.random() < 0.5)
    return reading(chance, folder)


def changed_pickle(chance: random.Random, folder: Path) -> list[str]:
    """The pickle of a sound file with a few bytes changed: most are still a pickle."""
    with zipfile.ZipFile(repacked(folder, "zip")) as archive:
        data = bytearray(archive.read("pytorch_model/data.pkl"))
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] = chance.choice(b"()}]tRQqhKXcu\x85\x86\x87\x81\x8a.b" + chance.randbytes(3))
    with_pickle(folder, bytes(data), zipped=chance.random() < 0.5)
    return reading(chance, folder)


def tars(chance: random.Random, folder: Path) -> list[str]:
    """A tar with members that lead elsewhere, claim too much, or come twice."""
    content = repacked(folder, "fairseq").read_bytes()
    path = folder / chance.choice(["model.tar.gz", "model.tar", "model.tgz"])
    names = ["model.pt", "x/model.pt", "../model.pt", "/model.pt", "dict.txt", "a\x1b.txt", "é" * 200, "config.json"]
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for _ in range(chance.randint(1, 4)):
            info = tarfile.TarInfo(chance.choice(names))
            kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]
            data = chance.choice([content, b"junk", bytes(2**20), bytes(2**27) if chance.random() < 0.1 else b""])
            info.type = tarfile.REGTYPE if chance.random() < 0.7 else chance.choice(kinds)
            info.linkname = "/etc/passwd"
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    if chance.random() < 0.4:
        data = bytearray(path.read_bytes())
        data[chance.randrange(min(len(data), 2_000))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randint(1, len(data))])
    return ["inspect", str(path)]


def damaged_runs(chance: random.Random, folder: Path) -> list[str]:
    """pretrain in a folder with a damaged state or record of its own, or with files of something else."""
    output = folder / "run"
    if chance.random() < 0.3:
        output.mkdir()
        (output / chance.choice(["config.json", "model.safetensors", "training_state.pt", "run.lock"])).write_bytes(
            b"mine"
        )
    else:
        shutil.copytree(Path(os.environ["HOSTILE_RUN"]), output)
        damage(chance, output / chance.choice(["training_state.pt", "training_state.pt", "run.json"]))
    return training(folder)


def odd_options(chance: random.Random, folder: Path) -> list[str]:
    """pretrain with settings of any size."""
    numbers = ["0", "-1", "1e-300", "400", "3e38", "1e308", "nan", "inf", "1e6", "7", "99999999999999999999"]
    names = [
        "learning-rate",
        "weight-decay",
        "language-exponent",
        "heads",
        "vocabulary-size",
        "dropout",
        "seed",
    ]
    names += ["mask-probability", "short-share", "max-tokens", "warmup-steps", "batch-size"]
    options = [word for name in chance.sample(names, 2) for word in (f"--{name}", chance.choice(numbers))]
    others = [
        ["--save-dtype", "float16"],
        ["--device", "meta"],
        ["--device", "cuda:99"],
        ["--precision", "float32"],
        [],
    ]
    return [*training(folder), *options, *chance.choice(others)]


FAMILIES: tuple[Case, ...] = (
    *(odd_config, damaged_text, damaged_weights, odd_header, packed_numbers, random_opcodes),
    *(changed_pickle, tars, damaged_runs, odd_options),
)


def reading(chance: random.Random, folder: Path) -> list[str]:
    """A command that reads the checkpoint in the folder."""
    return chance.choice(
        [
            ["inspect", str(folder)],
            ["inspect", "--values", str(folder)],
            ["fill-mask", "the <mask> sees", "--model", str(folder)],
            ["tokenize", "the cat", "--model", str(folder)],
            ["convert", str(folder), str(folder.parent / "out"), "--to", chance.choice(["hf", "fairseq"])],
            ["parity", "record", str(folder), "--text", "the cat", "-o", str(folder.parent / "out.safetensors")],
        ]
    )


def training(folder: Path) -> list[str]:
    small = {"vocabulary-size": 30, "hidden-size": 8, "layers": 1, "heads": 2, "intermediate-size": 8, "max-tokens": 24}
    small |= {"short-tokens": 12, "batch-size": 2, "steps": 2}
    text = folder / "en.txt"
    text.write_text("\n".join(sentences("en", 100, seed=1)) + "\n", encoding="utf-8")
    options = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    return ["pretrain", str(text), "-o", str(folder / "run"), *options]


def repacked(folder: Path, container: str) -> Path:
    """The weights in another container, which takes the place of model.safetensors."""
    path = folder / "model.safetensors"
    if container == "safetensors":
        return path
    state = load_file(path)
    content: Any = dict(state)
    config = XLMRobertaConfig.from_json(folder / "config.json")
    target = folder / "pytorch_model.bin"
    if container == "fairseq":
        content = {"args": Namespace(**settings_for(config, ("encoder", "lm_head"), "fairseq")), "model": content}
        target = folder / "model.pt"
        (folder / "config.json").unlink()
    torch.save(content, target, _use_new_zipfile_serialization=container != "old")
    path.unlink()
    return target


def with_pickle(folder: Path, data: bytes, *, zipped: bool) -> None:
    """pytorch_model.bin with these bytes for its pickle."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    path = folder / "pytorch_model.bin"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (
                ("data.pkl", data),
                ("byteorder", b"little"),
                ("version", b"3\n"),
                ("data/0", bytes(64)),
            ):
                archive.writestr(f"archive/{name}", content)
        return
    first = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*first, data, pickle.dumps([], protocol=2)]))


# ---- the run --------------------------------------------------------------------------------------------------------


class TooSlowError(BaseException):
    """A case took longer than SECONDS."""


@contextmanager
def limited() -> Generator[None, None, None]:
    def stop(number: int, frame: Any) -> None:
        raise TooSlowError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def digests(folder: Path) -> dict[str, str]:
    """What is in every file but the sparse ones of gigabytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**30]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_case(family: Case, number: int, source: Path, place: Path) -> str:
    """ "read" or "refused". Fails for anything else."""
    chance = random.Random(f"{SEED} {family.__name__} {number}")
    folder = place / "case"
    shutil.copytree(source, folder)
    command = family(chance, folder)
    before = digests(place)
    what = f"{family.__name__} {number}: xlmr {' '.join(command)}"
    with limited():
        result = CliRunner().invoke(main, command)
    assert result.exception is None or isinstance(result.exception, SystemExit), f"{what}\n{result.exception!r}"
    assert result.exit_code in (0, 1, 2), what
    if result.exit_code:
        assert "Error: " in result.stderr or "PROBLEM" in result.stdout or "NOT FINITE" in result.stdout, what
        assert "Traceback" not in result.output, what
    after = digests(place)
    if command[0] == "pretrain" and result.exit_code == 0:
        weights = load_file(folder / "run" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values()), what
    else:
        changed = {name for name in before if after.get(name) != before[name]}
        assert not changed, f"{what} changed {changed}"
    allowed = ("out", "out.safetensors", "case/run")
    new = {name for name in after.keys() - before.keys() if not name.startswith(allowed)}
    assert not new, f"{what} wrote {new}"
    shutil.rmtree(place)
    return "refused" if result.exit_code else "read"


@pytest.fixture(scope="module", autouse=True)
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """A finished run of pretrain, whose files are damaged."""
    folder = tmp_path_factory.mktemp("run")
    result = CliRunner().invoke(main, training(folder))
    assert result.exit_code == 0, result.output
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTILE_RUN", str(folder / "run"))
        yield


@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
@pytest.mark.skipif(os.name != "posix", reason="limits the time with a signal: run it on Linux or macOS")
@pytest.mark.parametrize("cases", [SAMPLE, pytest.param(CASES // len(FAMILIES), marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_hostile_files_are_read_or_refused(family: Case, cases: int, toy_checkpoint: Path, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(cases):
        try:
            seen[run_case(family, number, toy_checkpoint, tmp_path / "place")] += 1
        except (AssertionError, TooSlowError) as error:
            failures.append(str(error) or f"{family.__name__} {number} took more than {SECONDS} seconds")
            shutil.rmtree(tmp_path / "place")
    print(f"\n{family.__name__}: {dict(seen)}")
    assert not failures, "\n\n".join(failures)
    assert seen["refused"]  # the damage is real
