"""Files made to do harm: refused with a clear error, nothing run, nothing written elsewhere, memory bounded."""

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from checkpoint import fairseq_files, published
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from xlmr_core.checkpoint import CheckpointError, inspect_checkpoint
from xlmr_core.checkpoint.archive import MEMBERS_LIMIT, READ_LIMIT, SMALL
from xlmr_core.checkpoint.convert import convert
from xlmr_core.checkpoint.files import HEADER_LIMIT, LONGEST_KEY, open_weights
from xlmr_core.checkpoint.mapping import make_plan
from xlmr_core.heads import XLMRobertaForMaskedLM

CONFIG = replace(reference.POST_NORM, num_hidden_layers=2, layer_norm_eps=1e-5)
MEMORY = 200 * 2**20  # bytes that refusing a file may take
FLIPS = {"safetensors": 150, "zip": 150, "old": 150, "tar.gz": 50}  # flipped bits and cuts


@pytest.fixture(scope="module")
def fairseq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairseq")
    fairseq_files.write_fairseq(folder, CONFIG)
    return folder / "model.pt"


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# ---- tar ------------------------------------------------------------------------------------------------------------


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in members:
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (member("../model.pt"), r"'\.\./model\.pt': its path leaves the archive"),
        (member("x/../../model.pt"), "its path leaves the archive"),
        (member("/tmp/model.pt"), "its path leaves the archive"),
        (member("..\\model.pt"), "its path leaves the archive"),
        (member("C:model.pt"), "its path leaves the archive"),
        (member("model.pt", type=tarfile.SYMTYPE, linkname="/etc/passwd"), r"it is a link \(to '/etc/passwd'\)"),
        (member("x/model.pt", type=tarfile.LNKTYPE, linkname="../dict.txt"), "it is a link"),
        (member("x", type=tarfile.SYMTYPE, linkname=".."), "it is a link"),
        (member("model.pt", type=tarfile.CHRTYPE), "neither a plain file nor a folder"),
        (member("model.pt", type=tarfile.BLKTYPE), "neither a plain file nor a folder"),
        (member("dict.txt", type=tarfile.FIFOTYPE), "neither a plain file nor a folder"),
        (member("mo\x1b[2Jdel.pt"), r"'mo\\x1b\[2Jdel\.pt': its name has control characters"),
        (member("harmless\n.txt"), "its name has control characters"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_tar_member_that_leads_elsewhere(
    first: bool, info: tarfile.TarInfo, reason: str, fairseq: Path, tmp_path: Path
) -> None:
    good = (member("x/model.pt"), fairseq.read_bytes())
    bad = (info, b"data" if info.isreg() else b"")
    path = tar_of(tmp_path / "model.tar.gz", *([bad, good] if first else [good, bad]))
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match=f"is refused because of its member .*{reason}"):
        XLMRobertaForMaskedLM.from_pretrained(path)
    assert files_below(tmp_path) == before


def test_a_tar_with_a_file_twice(fairseq: Path, tmp_path: Path) -> None:
    one = (member("a/model.pt"), fairseq.read_bytes())
    path = tar_of(tmp_path / "model.tar.gz", one, (member("b/model.pt"), b"other"))
    with pytest.raises(CheckpointError, match=r"'b/model\.pt': it has that file twice"):
        inspect_checkpoint(path)


def test_a_tar_of_endless_members(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "model.tar.gz", *((member(f"{i}"), b"") for i in range(MEMBERS_LIMIT + 1)))
    with pytest.raises(CheckpointError, match=f"one of more than {MEMBERS_LIMIT} members"):
        inspect_checkpoint(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [2**37, 2**62])
def test_a_tar_that_claims_gigantic_sizes(kind: bytes, size: int, tmp_path: Path) -> None:
    """Of a file, and of a long name, which a reader would take into memory at once."""
    header = member("model.pt", type=kind, size=size).tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / "model.tar.gz"
    path.write_bytes(gzip.compress(header + bytes(10_000)))
    with pytest.raises(CheckpointError, match=r"is refused|cannot be unpacked"):
        inspect_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pt", "readme.txt"])
def test_a_tar_that_unpacks_to_far_more_than_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 kB that would become 100 MB, which is little beside what a larger one could fill a disk with."""
    path = tar_of(tmp_path / "model.tar.gz", (member(name), bytes(100 * 2**20)))
    assert path.stat().st_size < 2**18
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(
        CheckpointError, match=rf"'{name}': with it the archive claims 104857600 bytes; at most {SMALL}"
    ):
        inspect_checkpoint(path)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_tar_for_which_the_disk_has_no_room(fairseq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "model.tar.gz", (member("model.pt"), fairseq.read_bytes()))
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"'model\.pt' has \d+ bytes, and .* has room for 1000\. Set TMPDIR"):
        inspect_checkpoint(path)


TERMINATED = """
import os, signal
from xlmr_core.checkpoint import archive
from xlmr_core.cli import main

def copy(path, archive, member, destination):
    destination.write_text("half")
    os.kill(os.getpid(), signal.SIGTERM)

archive._copy_member = copy
main(["inspect", {path!r}])
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM: run it on Linux or macOS")
def test_sigterm_leaves_no_unpacked_files(fairseq: Path, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "model.tar.gz", (member("model.pt"), fairseq.read_bytes()))
    (tmp_path / "temporary").mkdir()
    environment = published.child_env() | {"TMPDIR": str(tmp_path / "temporary")}
    script = TERMINATED.format(path=str(path))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (143, "", "")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + bytes(50), b"<html>", bytes(5_000)])
def test_what_is_no_tar(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"cannot be unpacked|no weights that can be read"):
        inspect_checkpoint(path)


# ---- zip ------------------------------------------------------------------------------------------------------------


def rezipped(source: Path, path: Path, change: Any) -> Path:
    """The zip again, each member as `change(name, data)` writes it to the new archive."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            change(new, name, old.read(name))
    return path


def test_a_compressed_zip(fairseq: Path, tmp_path: Path) -> None:
    """torch never compresses; a member that does could unpack to anything."""

    def deflate(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
        archive.writestr(name, data, zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match=r"'.*' in it is compressed, as torch never does"):
        open_weights(rezipped(fairseq, tmp_path / "model.pt", deflate))


def test_a_pickle_that_is_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive, archive.open("archive/data.pkl", "w", force_zip64=True) as file:
        for _ in range(READ_LIMIT // 2**20 + 1):
            file.write(bytes(2**20))
    with pytest.raises(CheckpointError, match=r"'archive/data\.pkl' in it claims \d+ bytes"):
        open_weights(path)


@pytest.mark.parametrize("claim", [2**31, 2**32 - 2])
def test_a_zip_that_claims_more_than_it_is(claim: int, fairseq: Path, tmp_path: Path) -> None:
    data = bytearray(fairseq.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    while b"/data/" not in data[entry : entry + 100]:
        entry = data.rindex(b"PK\x01\x02", 0, entry)
    struct.pack_into("<II", data, entry + 20, claim, claim)  # packed and unpacked size, in the central directory
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its members claim \d+ bytes, more than the \d+ it has"):
        open_weights(tmp_path / "model.pt")


def test_a_tensor_larger_than_its_numbers(fairseq: Path, tmp_path: Path) -> None:
    """A stride of 0 makes a terabyte of one number: whoever looked at the values would run out of memory."""
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="'a' claims more numbers than the file has for it"):
        open_weights(tmp_path / "pytorch_model.bin")


def claiming(path: Path, numbers: int) -> None:
    torch.save({"a": torch.zeros(1_000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    old, new = b"M\xe8\x03", b"\x8a\x08" + struct.pack("<q", numbers)  # 1000, as pickle writes it
    assert old in data
    path.write_bytes(data.replace(old, new))


def with_a_long_name(path: Path, size: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=size).tobuf(tarfile.GNU_FORMAT))
        for _ in range(size // 2**20):
            file.write(b"a" * 2**20)


CHILD = """
import resource, sys
from pathlib import Path
from xlmr_core.checkpoint import CheckpointError
from xlmr_core.checkpoint.files import local_path, open_weights

for name in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_weights(local_path(name))
    except CheckpointError as error:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux: run it there")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A tensor of a petabyte, a header of a gigabyte, a name of half a gigabyte: each is refused at no cost."""
    claiming(tmp_path / "old.pt", 2**48)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**30) + b" " * 1_000)
    with_a_long_name(tmp_path / "model.tar.gz", 2**29)
    files = [str(tmp_path / name) for name in ("old.pt", "model.safetensors", "model.tar.gz")]
    command = [sys.executable, "-c", CHILD, *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=published.child_env())
    refusals = [line for line in run.stdout.splitlines() if any(file in line for file in files)]
    assert len(refusals) == len(files), run.stdout
    assert all(int(line.split()[0]) < MEMORY for line in refusals), refusals


def test_a_header_of_many_tensors_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", HEADER_LIMIT + 1) + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match=f"its header claims {HEADER_LIMIT + 1} bytes"):
        open_weights(path)


# ---- pickles --------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("container", ["zip", "old", "pickle 2", "pickle 4", "pickle 5"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"posix\.system|nt\.system"),
        (os.remove, r"posix\.remove|nt\.remove"),
        (sys.exit, r"sys\.exit"),
        (subprocess.Popen, r"Popen"),
        (eval, r"eval"),
    ],
)
def test_a_pickle_that_would_call_something_is_refused_by_name(
    function: Any, name: str, container: str, tmp_path: Path
) -> None:
    """Found by fuzzing: torch words it otherwise where the module is one that it blocks, and advises to go on."""
    content, path = {"a": Call(function, str(tmp_path / "marker"))}, tmp_path / "pytorch_model.bin"
    if container.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(container[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError) as raised:
        open_weights(path)
    message = str(raised.value)
    assert "is refused: it is a pickle that asks for more than tensors" in message
    assert "Nothing was run" in message
    assert re.search(f"{name}|Unsupported operand", message)  # a newer protocol is refused before the name is read
    assert "weights_only" not in message
    assert "safe_globals" not in message


# ---- index ----------------------------------------------------------------------------------------------------------


def test_an_index_of_nested_brackets(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": ' + "[" * 200_000)
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_weights(path)


@pytest.mark.parametrize("name", ["../a.bin", "a\x00.bin", "a/b.bin", "..", "/a.bin", "a.pkl"])
def test_an_index_does_not_name_other_places(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"weight_map": {"k": name}}))
    with pytest.raises(CheckpointError, match=r"not a weights file beside it|there is no a"):
        open_weights(path)


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_key_that_is_too_long(name: str, tmp_path: Path) -> None:
    """One of 10 MB took 19 seconds: the nearest of our keys was looked for."""
    tensors = {"roberta.": torch.zeros(1), "é" * (LONGEST_KEY + 1): torch.zeros(1)}
    if name.endswith("bin"):
        torch.save(tensors, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    with pytest.raises(
        CheckpointError, match=f"{name} is refused: it has a key of {LONGEST_KEY + 1} characters, 'é{{20}}'"
    ):
        open_weights(tmp_path / name)


def test_thousands_of_keys_near_those_that_are_missing() -> None:
    keys = [f"{KEYS[number % len(KEYS)]}_{number}" for number in range(20_000)]
    start = time.process_time()
    plan = make_plan(CONFIG, keys, XLMRobertaForMaskedLM.spec, "XLMRobertaForMaskedLM")
    assert time.process_time() - start < 5
    assert "and 19988 more" in plan.problems[0]


def test_numbers_that_torch_cannot_cast(folders: dict, tmp_path: Path) -> None:
    tensors = published.tensors_of(folders["masked-lm"])
    shape = tensors["lm_head.dense.weight"].shape
    tensors["lm_head.dense.weight"] = torch.zeros(shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    folder = published.rewritten(folders["masked-lm"], tmp_path / "m", {})
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for read in (XLMRobertaForMaskedLM.from_pretrained, inspect_checkpoint):
        with pytest.raises(
            CheckpointError, match=r"'lm_head\.dense\.weight' does not hold plain numbers .*float4_e2m1fn_x2"
        ):
            read(folder)


# ---- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**28 + 4, 2**62, 10**30])
@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"])
def test_a_size_that_no_tensor_can_have(name: str, size: int, folders: dict, tmp_path: Path) -> None:
    """Found by fuzzing: torch has errors of its own for it."""
    folder = published.rewritten(
        folders["masked-lm"], tmp_path / "m", published.tensors_of(folders["masked-lm"]), **{name: size}
    )
    for read in (inspect_checkpoint, XLMRobertaForMaskedLM.from_pretrained):
        with pytest.raises(CheckpointError, match=rf"config\.json asks for {name} {size}; at most {2**28}"):
            read(folder)
    with pytest.raises(CheckpointError, match=name):
        convert(folder, tmp_path / "out", "hf")


# ---- damage at random -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", FLIPS)
def test_flipped_bits_and_cuts(container: str, fairseq: Path, tmp_path: Path) -> None:
    """Each gives the tensors (a bit of a number was flipped) or a CheckpointError, never another error or a crash."""
    content = torch.load(fairseq, weights_only=False)
    path = tmp_path / {"safetensors": "model.safetensors", "tar.gz": "x.tar.gz"}.get(container, "model.pt")
    if container == "safetensors":
        save_file({key: tensor.clone() for key, tensor in content["model"].items()}, path)
    elif container == "tar.gz":
        tar_of(path, (member("x/model.pt"), fairseq.read_bytes()))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    whole, random = path.read_bytes(), torch.Generator().manual_seed(1)
    refused = 0
    for number in range(FLIPS[container]):
        data = bytearray(whole)
        reach = len(data) if number % 3 else 2_000  # a third of the damage in the header
        place = int(torch.randint(min(reach, len(data)), (), generator=random))
        if number % 5:
            data[place] ^= 1 << number % 8
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            if container == "tar.gz":
                inspect_checkpoint(path)
            else:
                open_weights(path)
        except CheckpointError:
            refused += 1
    print(f"\n{container}: {refused} of {FLIPS[container]} damaged files refused")
    assert refused >= FLIPS[container] // 5  # every cut at least


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F99", 3]),
                "shape": st.lists(st.sampled_from([0, 1, 4, 2**31, 2**63, -1]), max_size=3),
                "data_offsets": st.lists(st.sampled_from([0, 8, 16, 64, 2**40, 2**64, -1]), max_size=3),
            },
        ),
        max_size=4,
    ),
    data=st.integers(0, 80),
)
def test_any_header(header: dict[str, Any], data: int, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    with contextlib.suppress(CheckpointError):
        assert sum(tensor.nbytes for tensor in open_weights(path).values()) == data


KEYS = list(fairseq_files.fairseq_state(fairseq_files.hf_state(CONFIG), CONFIG))


@settings(max_examples=200, deadline=None)
@given(
    missing=st.sets(st.sampled_from(KEYS), max_size=5),
    added=st.sets(st.one_of(st.text(max_size=20), st.sampled_from(KEYS).map(lambda key: key + "_")), max_size=5),
)
def test_any_set_of_keys(missing: set[str], added: set[str]) -> None:
    """Loads only if nothing but tied copies is missing and nothing is added; otherwise each key is told of."""
    keys = [key for key in KEYS if key not in missing] + sorted(added - set(KEYS))
    plan = make_plan(CONFIG, keys, XLMRobertaForMaskedLM.spec, "XLMRobertaForMaskedLM")
    table = {"decoder.sentence_encoder.embed_tokens.weight", "decoder.lm_head.weight"}
    harmless = len(missing & table) < 2 and missing <= table and not added - set(KEYS)
    assert (not plan.problems) == harmless
    assert all(key in plan.statuses or any(repr(key) in problem for problem in plan.problems) for key in keys)


def test_names_with_control_characters_do_not_reach_the_terminal(fairseq: Path, tmp_path: Path) -> None:
    content = torch.load(fairseq, weights_only=False)
    content["model"]["\x1b[2Jgone\n"] = torch.zeros(1)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as raised:
        convert(tmp_path / "model.pt", tmp_path / "out", "hf")
    assert "\x1b" not in str(raised.value)
    assert not (tmp_path / "out").exists()
