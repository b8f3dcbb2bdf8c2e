"""Valid traces, dumps, maps of names and floors, changed at random by a seeded generator: what a stranger may send.

    python tests/kit/mutations.py FORMAT RUNS SEED   # prints how many were refused and how many read

Each case must end in the documented error or in a comparison. What is compared is wrong at every tap, so that no
comparison may pass.
"""

import argparse
import copy
import io
import json
import random
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from xlmr_core.checkpoint import CheckpointError
from xlmr_core.parity.check import check_trace, dump_from_file, floors_path, read_floors
from xlmr_core.parity.recording import Checkpoint, rerun
from xlmr_core.parity.trace import KEY, Trace, TraceError

SECONDS = 20  # that one case may take
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 10**5, 10**12, 10**30, 10**400, 0.5, -0.5, 1e300, float("nan"), float("inf"),
    "", "x", "2", "float32", "layers.0.mid", "layers.².mid", "layers.00.mid", "x" * 10_000, "\0", "\ud800", "{i}" * 50,
    [], [1], [None], ["a", "b"], {}, {"": 1}, {"name": "x", "axes": 5}, {"name": []},
]  # fmt: skip
SHAPES = [(), (0,), (1,), (3,), (2, 0), (1, 1), (2, 3), (2, 3, 4), (1, 1, 1, 1), (7, 7), (2, 1, 2, 1, 2)]
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64, torch.float8_e4m3fn, torch.complex64]  # fmt: skip
WITHOUT_NUMPY = (torch.bfloat16, torch.float8_e4m3fn)
NUMPY_DTYPES = ["?", "u1", "i4", ">i8", "u8", "f2", ">f4", "f8", "g", "c8", "U3", "S3", "O", "M8[s]", "V4"]


@dataclass(frozen=True)
class Setting:
    """A trace with its floors, and a dump that is wrong at every tap, each in a file."""

    trace: Path
    wrong: Path  # .npz, with names of its own
    names: dict[str, Any]
    checkpoint: Checkpoint
    folder: Path  # for the mutated files


def prepare(trace: Trace, checkpoint: Checkpoint, floors: Callable[[Path], None], folder: Path) -> Setting:
    """floors: writes the floors of the trace to a file."""
    path = folder / "trace.safetensors"
    trace.save(path)
    floors(floors_path(path))
    arrays = {f"p.{name}": tensor.numpy() for name, tensor in wrong_taps(trace).items()}
    np.savez(folder / "wrong.npz", **arrays)
    names = {"names": {name.removeprefix("p."): name for name in arrays if not name.endswith(".top_ids")}}
    (folder / "cases").mkdir()
    return Setting(path, folder / "wrong.npz", names, checkpoint, folder / "cases")


def wrong_taps(trace: Trace) -> dict[str, Tensor]:
    """Every tensor of the trace, off by far more than rounding; the ids of the kept logits are left as they are."""
    return {
        tap: tensor + 10 + tensor.abs() if tensor.is_floating_point() else tensor
        for tap, tensor in trace.tensors.items()
    }


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutated_json(choose: random.Random, content: Any) -> str:
    """One or two changes somewhere in a JSON value, or JSON that is deep, cut off or not of an object."""
    kind = choose.random()
    if kind < 0.05:
        depth = choose.choice([100, 1_000, 10_000])
        return choose.choice(["[", '{"a":']) * depth
    if kind < 0.1:
        return json.dumps(choose.choice(ODD))
    content = copy.deepcopy(content)
    for _ in range(choose.choice([1, 1, 2])):
        mutate(choose, content)
    text = json.dumps(content)
    if kind < 0.15:
        text = text.replace("null", "[" * choose.choice([100, 10_000]), 1)
    return text[: choose.randrange(len(text))] if kind > 0.97 else text


def mutate(choose: random.Random, content: Any) -> None:
    """Replaces, removes, renames or adds one entry of some list or table inside `content`."""
    if not content:  # the only entry is gone
        return
    places = [content]
    for place in places:  # grows as it goes
        entries = place.values() if isinstance(place, dict) else place
        places += [entry for entry in list(entries)[:40] if isinstance(entry, dict | list) and entry]
    place = choose.choice(places)
    key = choose.choice(list(place)) if isinstance(place, dict) else choose.randrange(len(place))
    value = copy.deepcopy(choose.choice(ODD))
    action = choose.choice(["replace"] * 4 + ["remove", "rename", "add", "swap"])
    if action == "replace":
        place[key] = value
    elif action == "remove":
        del place[key]
    elif isinstance(place, list):
        place.insert(key, value if action == "add" else copy.deepcopy(place[key]))
    elif action == "swap":
        other = choose.choice(list(place))
        place[key], place[other] = place[other], place[key]
    else:
        name = choose.choice(["x", "", "layers.0.mid", "layers.².mid", "a" * 1_000, "names", "steps"])
        place[name] = place.pop(key) if action == "rename" else value


def flipped(choose: random.Random, content: bytes) -> bytes:
    """Some bytes changed, most of them near the beginning or the end, where the headers are; sometimes cut off."""
    changed = bytearray(content or b"?")
    for _ in range(choose.choice([1, 1, 2, 8, 64])):
        span = choose.choice([16, 512, 8192, len(changed)])
        place = choose.randrange(min(span, len(changed)))
        changed[place if choose.random() < 0.7 else -1 - place] = choose.randrange(256)
    return bytes(changed[: choose.randrange(len(changed))] if choose.random() < 0.1 else changed)


def mutated_tensors(choose: random.Random, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One or two tensors of another shape, dtype, value or name, or gone."""
    tensors = dict(tensors)
    for _ in range(choose.choice([1, 1, 2])):
        special = [name for name in tensors if "input" in name or "mask" in name or "top_" in name]
        name = choose.choice(special if special and choose.random() < 0.6 else list(tensors))
        tensor = tensors[name]
        action = choose.choice(["shape", "dtype", "zero", "value", "rename", "remove", "cut", "twice"])
        if action == "shape":
            tensors[name] = torch.ones(choose.choice(SHAPES), dtype=tensor.dtype)
        elif action == "dtype":
            tensors[name] = tensor.to(choose.choice(DTYPES))
        elif action == "zero":
            tensors[name] = torch.zeros_like(tensor)
        elif action == "value" and tensor.numel():
            value = choose.choice([-1, 2, 10**9, 0.5, float("nan"), float("inf")])
            changed = tensor.double().flatten().clone()
            changed[choose.randrange(len(changed))] = value
            tensors[name] = changed.view_as(tensor).to(tensor.dtype)
        elif action == "rename":
            tensors[choose.choice(["x", "layers.9.mid", "layers.00.mid", "gradients.", "loss"])] = tensors.pop(name)
        elif action == "remove" and len(tensors) > 1:
            del tensors[name]
        elif tensor.dim():
            tensors[name] = tensor[:0] if action == "cut" else torch.cat([tensor, tensor])
    return tensors


# ---- cases -----------------------------------------------------------------------------------------------------------


def trace_case(choose: random.Random, setting: Setting) -> bool:
    """A mutated trace against the wrong dump, against itself made wrong, and run again. Returns whether it was read."""
    tensors = load_file(setting.trace)
    with safe_open(setting.trace, framework="pt") as file:
        text = file.metadata()[KEY]
    kind = choose.random()
    if kind < 0.4:
        content = save(tensors, {KEY: mutated_json(choose, json.loads(text)).encode("utf-8", "replace").decode()})
    elif kind < 0.8:
        content = save(mutated_tensors(choose, tensors), {KEY: text})
    else:
        content = flipped(choose, setting.trace.read_bytes())
    path = setting.folder / "trace.safetensors"
    path.write_bytes(content)
    try:
        trace = Trace.load(path)
    except TraceError as error:
        return refused(error, path.name)
    assert not check_trace(trace, wrong_taps(trace), floors=None).ok
    compare_with_wrong(trace, setting, setting.names["names"])
    try:
        floors = read_floors(trace, floors_path(setting.trace))
        assert not check_trace(trace, wrong_taps(trace), floors=floors).ok
        rerun(trace, setting.checkpoint, dtype=torch.float32)
    except ValueError as error:
        return refused(error)
    return True


def compare_with_wrong(trace: Trace, setting: Setting, names: dict[str, Any]) -> None:
    path = setting.folder / "names.json"
    path.write_text(json.dumps({"names": names}))
    try:
        dump = dump_from_file(trace, setting.wrong, path)
        assert not check_trace(trace, dump, floors=None, partial=True).ok
    except ValueError as error:
        refused(error)


def npz_case(choose: random.Random, setting: Setting) -> bool:
    """A mutated .npz that is wrong at every tap."""
    trace = Trace.load(setting.trace)
    tensors = mutated_tensors(choose, trace.inputs | wrong_taps(trace))
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.dtype not in WITHOUT_NUMPY}
    file = io.BytesIO()
    kind = choose.random()
    if kind < 0.3:
        name = choose.choice(list(arrays))
        with np.errstate(all="ignore"):
            arrays[name] = np.zeros(choose.choice(SHAPES), choose.choice(NUMPY_DTYPES))
    choose.choice([np.savez, np.savez_compressed])(file, **arrays)
    content = file.getvalue()
    if kind > 0.7:
        content = flipped(choose, content)
    elif kind > 0.55:
        content = odd_member(choose, list(arrays))
    path = setting.folder / "dump.npz"
    path.write_bytes(content)
    return read_and_compared(trace, path)


def odd_member(choose: random.Random, names: list[str]) -> bytes:
    """A zip whose one array has an odd header, or is not what its header says."""
    shape = choose.choice(["(2, 3)", "(-1,)", "(10**9,)", "(99999999999,)", "5", "()", "(0, 99999999999)", "(" * 500])
    header = (
        f"{{'descr': {choose.choice(NUMPY_DTYPES)!r}, 'fortran_order': {choose.choice([True, 7])}, 'shape': {shape}, }}"
    )
    start = choose.choice([b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00", b"\x80\x04\x95"])
    size = struct.pack("<H" if start[6:7] == b"\x01" else "<I", choose.choice([len(header), 60_000]))
    file = io.BytesIO()
    way = choose.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", way) as archive:
        content = start + size + header.encode() + bytes(choose.choice([0, 24, 10**6]))
        archive.writestr(choose.choice(names) + ".npy", content)
    return file.getvalue()


def safetensors_case(choose: random.Random, setting: Setting) -> bool:
    """A mutated dump in a .safetensors file that is wrong at every tap."""
    trace = Trace.load(setting.trace)
    content = save(mutated_tensors(choose, trace.inputs | wrong_taps(trace)))
    path = setting.folder / "dump.safetensors"
    path.write_bytes(flipped(choose, content) if choose.random() < 0.4 else content)
    return read_and_compared(trace, path)


def read_and_compared(trace: Trace, path: Path) -> bool:
    for keep_inputs in (False, True):  # as `check` and as `diagnose` read it
        try:
            dump = dump_from_file(trace, path, keep_inputs=keep_inputs)
            for partial in (False, True):
                assert not check_trace(trace, dump, floors=None, partial=partial).ok
        except ValueError as error:
            refused(error)
            outcome = False
        else:
            outcome = True
    return outcome


def names_case(choose: random.Random, setting: Setting) -> bool:
    """A mutated map, as JSON or TOML, of the wrong dump."""
    trace = Trace.load(setting.trace)
    valid = copy.deepcopy(setting.names)
    if choose.random() < 0.5:
        tap = choose.choice(list(valid["names"]))
        axes = choose.choice(
            ["B S H", "B S N D", "S H", "T H", "B N Q K", "", "Z", "B B", "H", "B S (P H)", "L (B S) H"]
        )
        valid["names"][tap] = {"name": valid["names"][tap], "axes": axes}
    if choose.random() < 0.6:
        path = setting.folder / "names.json"
        content = mutated_json(choose, valid).encode("utf-8", "replace")
        path.write_bytes(flipped(choose, content) if choose.random() < 0.3 else content)
    else:
        path = setting.folder / "names.toml"
        path.write_bytes(mutated_toml(choose, valid))
    try:
        dump = dump_from_file(trace, setting.wrong, path)
        for partial in (False, True):
            assert not check_trace(trace, dump, floors=None, partial=partial).ok
    except ValueError as error:
        return refused(error)
    return True


def mutated_toml(choose: random.Random, content: dict[str, Any]) -> bytes:
    lines = ["[names]"]
    for tap, entry in content["names"].items():
        value = (
            json.dumps(entry) if isinstance(entry, str) else f'{{name = "{entry["name"]}", axes = "{entry["axes"]}"}}'
        )
        lines.append(f'"{tap}" = {value}')
    odd = ["5", "[]", "1979-05-27", "nan", "{}", "[" * 10_000, "{name = 1}", "[[names]]", "9" * 5_000, '"\0"']
    lines[choose.randrange(len(lines))] += choose.choice(["", f"\nx = {choose.choice(odd)}", "\n" + choose.choice(odd)])
    if choose.random() < 0.2:
        lines.append("[" + ".".join("a" * 2_000) + "]")
    text = "\n".join(lines).encode()
    return flipped(choose, text) if choose.random() < 0.6 else text


def floors_case(choose: random.Random, setting: Setting) -> bool:
    """A mutated table of floors, by which the wrong dump must not pass."""
    trace, valid = Trace.load(setting.trace), floors_path(setting.trace)
    path = setting.folder / "floors.json"
    content = mutated_json(choose, json.loads(valid.read_text())).encode("utf-8", "replace")
    path.write_bytes(flipped(choose, content) if choose.random() < 0.3 else content)
    try:
        floors = read_floors(trace, path)
    except TraceError as error:
        return refused(error, path.name)
    assert not check_trace(trace, wrong_taps(trace), floors=floors).ok
    return True


def refused(error: ValueError, name: str = "") -> bool:
    """A message is of a documented kind, of a length that a person reads, and contains the name of the file."""
    assert type(error) in (ValueError, TraceError, CheckpointError), type(error)
    assert 0 < len(str(error)) < 3_000, str(error)[:300]
    assert name in str(error)
    return False


CASES: dict[str, Callable[[random.Random, Setting], bool]] = {
    "trace": trace_case,
    "npz": npz_case,
    "safetensors": safetensors_case,
    "names": names_case,
    "floors": floors_case,
}


def run(target: str, runs: int, seed: int, setting: Setting) -> Counter[str]:
    """Runs cases one after the other. Raises AssertionError, naming the case, for one that is not as it must be."""
    seen: Counter[str] = Counter()
    for number in range(runs):
        started = time.monotonic()
        try:
            with limited(SECONDS):
                outcome = CASES[target](random.Random(f"{target} {seed} {number}"), setting)
        except Exception as error:
            raise AssertionError(f"{target}, seed {seed}, case {number}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - started < SECONDS, f"{target}, seed {seed}, case {number} took too long"
        seen["read" if outcome else "refused"] += 1
    return seen


class limited:  # noqa: N801 (a context manager)
    """Ends what takes longer than some seconds, where the system has alarms."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self._end)
            signal.alarm(self.seconds)

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)

    def _end(self, *_: object) -> None:
        raise RuntimeError(f"no end after {self.seconds} seconds")


if __name__ == "__main__":
    from xlmr_core.parity.check import measure_trace
    from xlmr_core.parity.recording import record

    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=CASES)
    parser.add_argument("runs", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("checkpoint")
    arguments = parser.parse_args()
    recorded = record(arguments.checkpoint, ["the cat", "a bird"], grad=True, steps=2)
    model = Checkpoint.load(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        table = measure_trace(recorded, model, dtypes=[torch.float32])
        there = prepare(recorded, model, table.save, Path(name))
        print(arguments.target, dict(run(arguments.target, arguments.runs, arguments.seed, there)), file=sys.stderr)
