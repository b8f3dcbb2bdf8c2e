"""Coverage-guided fuzzing of the readers: whatever the bytes, the answer is the content or a CheckpointError.

    fuzz.py TARGET RUNS SEED FOLDER

libFuzzer, which atheris brings, takes over the process: it ends with the last line that says what was seen, or with
the traceback of the first input that gave another error, and a file of that input in FOLDER. What an input makes
Python do is watched by an audit hook: running anything, or writing outside FOLDER, ends the process at once.
"""

import argparse
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import torch
from safetensors.torch import save
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["xlmr_core.checkpoint"]):
    from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
    from xlmr_core.checkpoint.archive import unpack
    from xlmr_core.checkpoint.fairseq import settings_for
    from xlmr_core.checkpoint.files import open_weights, read_config, read_index
    from xlmr_core.checkpoint.layouts import LAYOUTS, expand
    from xlmr_core.checkpoint.mapping import make_plan
    from xlmr_core.checkpoint.sentence_transformers import carried_from

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM, model_classes

LONGEST = 4096  # bytes of an input
SECONDS = 30  # that one input may take
MANY = 2**16  # numbers of a tensor that are not looked at one by one
FIELDS: dict[str, list[Any]] = {
    "dtype": ["F32", "F16", "I64", "F8_E4M3", "F99", 3, None],
    "shape": [[4, 4], [16], [8], [], [0], [2**31, 2**33], [2**63], [-1], [1.5], "16"],
    "data_offsets": [[0, 64], [0, 32], [32, 64], [64, 0], [0, 0], [0], [0, 2**40], [-1, 63], [2**64, 2**64 + 64], None],
}
ODD: list[Any] = [
    0,
    1,
    2,
    3,
    8,
    10**5,
    2**31,
    2**62,
    10**30,
    -1,
    0.5,
    1e400,
    None,
    True,
    False,
    "4",
    "gelu",
    [],
    [4],
    {},
    {"0": "A"},
]
MEGABYTES = 3000  # of memory, of which torch takes a few hundred
RUN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "subprocess.",
    "socket.",
    "pty.",
)
WRITE = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.",
)
SIZES = {"vocab_size": 9, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 6, "num_hidden_layers": 2}
CONFIG = XLMRobertaConfig(**SIZES, max_position_embeddings=8)

seen: Counter[str] = Counter()


# ---- what is read ---------------------------------------------------------------------------------------------------


def safetensors(data: bytes, folder: Path) -> None:
    """A whole file."""
    look_at(open_weights(written(folder / "model.safetensors", data)))


def header(data: bytes, folder: Path) -> None:
    """A header that is JSON, of fields that are right or nearly so, and a few numbers."""
    choose = atheris.FuzzedDataProvider(data)
    entries: dict[str, Any] = {}
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        name = choose.PickValueInList(["a", "b", "__metadata__", choose.ConsumeUnicode(4)])
        entries[name] = {field: choose.PickValueInList(values) for field, values in FIELDS.items()}
        if choose.ConsumeProbability() < 0.1:
            del entries[name][choose.PickValueInList(list(FIELDS))]
    text = json.dumps(entries).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(choose.PickValueInList([64, 0, 8, 128]))
    safetensors(content, folder)


@atheris.instrument_func
def look_at(tensors: dict[str, Tensor]) -> None:
    """Touches every number: one that the file does not have would end the process."""
    for tensor in tensors.values():
        if tensor.layout == torch.strided and tensor.numel() < MANY:
            tensor.clone()
        if tensor.dim() > 1:
            seen["matrices"] += 1
        if tensor.is_floating_point():
            seen["floating-point tensors"] += 1


def index(data: bytes, folder: Path) -> None:
    """An index of shards, of which a.safetensors is there."""
    path = written(folder / "model.safetensors.index.json", data)
    read_index(path)
    look_at(open_weights(path))


def pickled(data: bytes, folder: Path) -> None:
    """A file of PyTorch's, a zip or from before 1.6; one of fairseq's tells its config too."""
    path = written(folder / "model.pt", data)
    look_at(open_weights(path))
    look_at(open_weights(path, headers_only=True))
    read_config(path)


def zipped_pickle(data: bytes, folder: Path) -> None:
    """A zip as torch writes it, with these bytes for the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", data), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(64))):
            archive.writestr(f"archive/{name}", content)
    pickled(file.getvalue(), folder)


def tar(data: bytes, folder: Path) -> None:
    """A tar, not packed, as a byte of what is packed changes all that follows."""
    path = written(folder / "model.tar", data)
    unpacked = unpack(path, ("model.pt", "dict.txt"))
    assert {file.name for file in unpacked.iterdir()} <= {"model.pt", "dict.txt"}
    shutil.rmtree(unpacked)


def modules(data: bytes, folder: Path) -> None:
    """The small files of a sentence-transformers folder: modules.json and the settings of the pooling."""
    first, _, second = data.partition(b"\n")
    written(folder / "modules.json", first)
    written(folder / "1_Pooling" / "config.json", second)
    carried = carried_from(folder, folder)
    if carried.notes:
        raise CheckpointError(carried.notes[0])


def config(data: bytes, folder: Path) -> None:
    """A config.json."""
    read_config(written(folder / "config.json", data))


def checkpoint(data: bytes, folder: Path) -> None:
    """A sound file of weights, and a config.json that is wrong about it, or odd in other ways."""
    choose = atheris.FuzzedDataProvider(data)
    values = CONFIG.to_dict()
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        values[choose.PickValueInList(list(values))] = choose.PickValueInList(ODD)
    written(folder / "config.json", json.dumps(values).encode())
    found = inspect_checkpoint(folder, values=choose.ConsumeBool())
    if found.problems:
        raise CheckpointError("\n".join(found.problems))


def keys(data: bytes, folder: Path) -> None:
    """The keys of any layout, some left out, some spelled otherwise, some added: each is accounted for."""
    choose = atheris.FuzzedDataProvider(data)
    layout = LAYOUTS[choose.ConsumeIntInRange(0, len(LAYOUTS) - 1)]
    cls = model_classes()[choose.ConsumeIntInRange(0, len(model_classes()) - 1)]
    found = [key for slot in expand(layout, CONFIG, cls.spec) for key in slot.keys]
    for _ in range(choose.ConsumeIntInRange(0, 8)):
        place = choose.ConsumeIntInRange(0, len(found) - 1)
        change = choose.ConsumeIntInRange(0, 2)
        if change == 0:
            found[place] = found[place] + choose.ConsumeUnicode(3)
        elif change == 1:
            found.append(choose.ConsumeUnicode(20))
        elif len(found) > 1:
            del found[place]
    plan = make_plan(CONFIG, dict.fromkeys(found), cls.spec, cls.__name__, new_head=choose.ConsumeBool())
    lost = [key for key in found if key not in plan.statuses]
    assert not lost or plan.problems, f"nothing is said of {lost}"
    if plan.problems:
        raise CheckpointError("\n".join(plan.problems))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- where fuzzing begins -------------------------------------------------------------------------------------------


def tensors() -> dict[str, Tensor]:
    """A few, of the kinds that there are."""
    return {"a": torch.zeros(2, 3), "b.c": torch.ones(4, dtype=torch.float16), "d": torch.arange(2)}


def saved(content: Any, *, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def fairseq() -> dict[str, Any]:
    """What fairseq keeps beside the tensors, and one of these, which tells the size of the vocabulary."""
    words = {"decoder.sentence_encoder.embed_tokens.weight": torch.zeros(9, 4)}
    return {"args": argparse.Namespace(**settings_for(CONFIG, (), "fairseq")), "model": words}


def indexed(shards: dict[str, str]) -> bytes:
    return json.dumps({"weight_map": shards}).encode()


def packed(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"12345"))
    return file.getvalue()[:LONGEST]


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("echo this was run",)


def steps() -> bytes:
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in STEPS]
    return json.dumps(listed).encode() + b'\n{"pooling_mode_mean_tokens": true, "pooling_mode": ["cls", "max"]}'


STEPS = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
DATA = "archive/data.pkl"
Reader = Callable[[bytes, Path], None]
TARGETS: dict[str, tuple[Reader, Callable[[], list[bytes]]]] = {
    "safetensors": (safetensors, lambda: [save(tensors()), save({})]),
    "header": (header, lambda: [bytes(40), bytes([255] * 40), bytes(range(100)), bytes(range(255, 100, -1))]),
    "index": (
        index,
        lambda: [indexed(dict.fromkeys(tensors(), "a.safetensors")), indexed({"a": "a.bin", "b": "b.safetensors"})],
    ),
    "old pickle": (
        pickled,
        lambda: [saved(tensors(), zipped=False), saved(fairseq(), zipped=False), pickle.dumps(Harmful())],
    ),
    "zip": (pickled, lambda: [saved(tensors(), zipped=True), saved(fairseq(), zipped=True)]),
    "zipped pickle": (
        zipped_pickle,
        lambda: [
            pickle.dumps(Harmful(), protocol=2),
            *(zipfile.ZipFile(io.BytesIO(saved(c, zipped=True))).read(DATA) for c in (tensors(), fairseq())),
        ],
    ),
    "tar": (
        tar,
        lambda: [packed("model.pt", "dict.txt"), packed("x/model.pt"), packed("../model.pt"), packed("é" * 99)],
    ),
    "modules": (modules, lambda: [steps()]),
    "config": (config, lambda: [json.dumps(CONFIG.to_dict()).encode(), b'{"id2label": {"0": "A"}}']),
    "checkpoint": (checkpoint, lambda: [bytes(20), bytes(range(100, 120)), bytes([255] * 20)]),
    "keys": (keys, lambda: [bytes([i, j, 0, 0]) for i in range(len(LAYOUTS)) for j in range(len(model_classes()))]),
}


# ---- the run --------------------------------------------------------------------------------------------------------


def watch(folder: Path) -> None:
    """Ends the process where anything is run, or written to outside the folder."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event.startswith(WRITE) or (event == "open" and opens_to_write(*arguments))
        if event.startswith(RUN) or (writes and not place_of(*arguments).is_relative_to(folder)):
            print(f"HARM: {event} {arguments}", file=sys.stderr, flush=True)
            os._exit(1)

    sys.addaudithook(hook)


def place_of(path: Any, *others: Any) -> Path:
    """Where a file is that an event tells of; the folder may be given as a descriptor, behind the path."""
    folders = [f"/proc/self/fd/{other}" for other in others if type(other) is int and other > 2]
    return Path(os.path.realpath(Path(folders[0] if folders else "", os.fsdecode(path))))


def opens_to_write(path: Any, mode: Any, flags: int) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def main() -> None:
    target, runs, seed, place = sys.argv[1:]
    folder = Path(place).resolve()
    read, seeds = TARGETS[target]
    (folder / "1_Pooling").mkdir()
    (folder / "corpus").mkdir()
    (folder / "a.safetensors").write_bytes(save(tensors()))
    if target == "checkpoint":
        model = XLMRobertaForMaskedLM(CONFIG)
        model.initialize()
        model.save_pretrained(folder)
    for number, data in enumerate(seeds()):
        (folder / "corpus" / f"{number}").write_bytes(data)
    tempfile.tempdir = str(folder)

    def one_input(data: bytes) -> None:
        seen["runs"] += 1
        try:
            read(data, folder)
            seen["read"] += 1
        except CheckpointError:
            seen["refused"] += 1
        if seen["runs"] == int(runs):  # libFuzzer ends the process without a word from Python
            print(json.dumps(seen), flush=True)

    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        "-len_control=0",  # inputs as long as they may be from the start
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEGABYTES}",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder / "corpus")], one_input)
    watch(folder)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
