"""Kills a process at random moments, again and again, and looks at what it left. Run as a script, it prints JSON.

One process imports everything and forks a child for each attempt: starting Python fifty times would take minutes.
Writing and sending are slowed down, so that the kills land everywhere.

    killing.py convert|trim|save|save-m3|tokenizer|download|pretrain SOURCE FOLDER KILLS SEED
"""

import copy
import io
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_language import sentences

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer, atomic
from xlmr_core.checkpoint import CheckpointError, bundled, cache, writing
from xlmr_core.checkpoint import convert as convert_module
from xlmr_core.checkpoint.files import CONFIG, TOKENIZER
from xlmr_core.checkpoint.trimming import trim
from xlmr_core.heads import XLMRobertaForM3
from xlmr_core.model import PretrainedModel
from xlmr_core.training import PretrainSettings, distributed, loop

SLOWNESS = 0.003  # seconds for each tensor that is written, and for each chunk that is sent
SLOW_CHUNK = 1_000  # bytes sent at a time by the slow server

Contents = dict[str, bytes]


def contents(folder: Path) -> Contents:
    """Every file below the folder that is not temporary, by its path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def attempt(work: Callable[[], Any], seconds: float | None) -> bool:
    """Does the work in a child that is killed after `seconds`, if given; True if it was done before that."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise RuntimeError(f"the child failed by itself (status {status})")
    return status == 0


def duration_of(work: Callable[[], Any]) -> float:
    """Seconds that the work takes when nobody kills it, on this machine as busy as it is."""
    start = time.perf_counter()
    assert attempt(work, None)
    return time.perf_counter() - start


def slow_down() -> None:
    """A pause before each tensor that is written, and before each rename."""
    write, rename = writing.write_tensor, os.replace

    def write_slowly(*arguments: Any) -> None:
        time.sleep(SLOWNESS)
        write(*arguments)

    def rename_slowly(*arguments: Any) -> None:
        time.sleep(3 * SLOWNESS)
        rename(*arguments)

    writing.write_tensor, os.replace = write_slowly, rename_slowly


def kill_new_folders(make: Callable[[Path], Any], folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """The destination is not there, or whole; what a killed run left is gone after the next."""
    make(folder / "expected")
    expected = contents(folder / "expected")
    shutil.rmtree(folder / "expected")
    slow_down()
    seen: Counter[str] = Counter()
    destination = folder / "out"

    def work() -> None:
        make(destination)

    longest = duration_of(work)
    shutil.rmtree(destination)
    while seen["kills"] < kills:
        if attempt(work, chance.uniform(0, longest)):
            seen["done in time"] += 1
        else:
            seen["kills"] += 1
            seen["left something temporary"] += any(path.name.endswith(".tmp") for path in folder.iterdir())
        if destination.exists():
            assert contents(destination) == expected
            seen["whole"] += 1
            shutil.rmtree(destination)
    work()
    assert contents(destination) == expected
    assert [path.name for path in folder.iterdir()] == ["out"], "a killed run's leftovers are still there"
    return seen


def kill_conversions(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """To another layout."""
    return kill_new_folders(lambda path: convert_module.convert(source, path, "fairseq"), folder, kills, chance)


def kill_trims(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Of the bundled checkpoint, which has a vocabulary."""
    return kill_new_folders(lambda path: trim("xlmr-tiny", path, keep=["\u2581the"]), folder, kills, chance)


def kill_overwrites(
    save_old: Callable[[], Any],
    save_new: Callable[[], Any],
    needed: str,
    folder: Path,
    kills: int,
    chance: random.Random,
) -> Counter[str]:
    """Over old files: all are the old ones or the new ones, or `needed` is not there and nothing loads."""
    versions: list[Contents] = []
    for save in (save_new, save_old):
        save()
        versions.append(contents(folder))
    assert all(versions[0][name] != versions[1][name] for name in versions[0])
    slow_down()
    seen: Counter[str] = Counter()
    longest = duration_of(save_new)
    save_old()
    while seen["kills"] < kills:
        if attempt(save_new, chance.uniform(0, longest)):
            seen["done in time"] += 1
        else:
            seen["kills"] += 1
        found = contents(folder)
        temporary = {name for name in found if name.endswith(".tmp")}
        seen["left something temporary"] += bool(temporary)
        assert len(temporary) <= len(versions[0]), "what the run before left is still there"
        saved = {name: found[name] for name in found.keys() - temporary}
        if needed not in saved:
            seen["refused"] += 1
        else:
            assert saved in versions, "a mixture that loads"
        if saved != versions[1]:
            seen["whole"] += saved == versions[0]
            save_old()
    save_new()
    assert contents(folder) == versions[0]
    return seen


def kill_saves(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Of a model with two files."""
    return kill_model_saves(XLMRobertaForMaskedLM.from_pretrained(source), folder, kills, chance)


def kill_m3_saves(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Of a model with four files."""
    return kill_model_saves(XLMRobertaForM3.from_pretrained(source, new_head=True), folder, kills, chance)


def kill_model_saves(old: PretrainedModel, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Of other weights and another config."""
    new = copy.deepcopy(old)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    new.config = replace(new.config, layer_norm_eps=0.5)
    return kill_overwrites(
        lambda: old.save_pretrained(folder), lambda: new.save_pretrained(folder), CONFIG, folder, kills, chance
    )


def kill_tokenizer_saves(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Of another vocabulary and another greatest length."""
    trim("xlmr-tiny", folder / "trimmed", keep=["\u2581the"])
    old = XLMRobertaTokenizer(bundled() / TOKENIZER, max_tokens=20)
    new = XLMRobertaTokenizer(folder / "trimmed" / TOKENIZER, max_tokens=30)
    place = folder / "tokenizer"
    return kill_overwrites(
        lambda: old.save_pretrained(place), lambda: new.save_pretrained(place), TOKENIZER, place, kills, chance
    )


def kill_downloads(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """The cache has no weights, the right ones, or wrong ones that the next load refuses: half the time the server
    sends wrong bytes. A run that is not killed ends with the right ones.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import huggingface_hub.constants
    from checkpoint import hub_server

    def send_slowly(self: Any, path: Path, start: int, large: bool) -> None:
        data = path.read_bytes()
        if large and self.state.corrupt:
            data = bytes(len(data))
        for place in range(start, len(data), SLOW_CHUNK):
            time.sleep(SLOWNESS)
            self.wfile.write(data[place : place + SLOW_CHUNK])

    hub_server._Handler.send_body = send_slowly
    hub_server._Handler.handle_error = lambda *arguments: None
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = SLOW_CHUNK
    hash_of = cache.hash_of

    def hash_slowly(path: Path, kind: str) -> str:
        time.sleep(50 * SLOWNESS)
        return hash_of(path, kind)

    cache.hash_of = hash_slowly
    expected = (source / "model.safetensors").read_bytes()
    seen: Counter[str] = Counter()
    with hub_server.serve(hub_server.Behaviour({"org/tiny": source})) as hub:
        huggingface_hub.constants.ENDPOINT = hub.url
        huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE = hub.url + "/{repo_id}/resolve/{revision}/{filename}"

        def load() -> None:
            XLMRobertaForMaskedLM.from_pretrained("org/tiny", cache_dir=folder)

        def try_to_load() -> None:
            with suppress(CheckpointError):
                load()

        load()  # here, so that no child spends its time on imports
        huggingface_hub.close_session()
        shutil.rmtree(folder)
        longest = duration_of(load)
        shutil.rmtree(folder)
        folder.mkdir()
        while seen["kills"] < kills:
            hub.corrupt = chance.random() < 0.5
            if attempt(try_to_load, chance.uniform(0, longest)):
                seen["done in time"] += 1
            else:
                seen["kills"] += 1
                seen["left something temporary"] += any(folder.rglob("*.incomplete"))
            found = list(folder.glob("models--*/snapshots/*/model.safetensors"))
            for path in found:
                right = path.read_bytes() == expected
                seen["whole" if right else "refused"] += 1
                with nullcontext() if right else pytest.raises(CheckpointError):
                    cache.verify(path)
            if found:
                shutil.rmtree(folder)
                folder.mkdir()
        hub.corrupt = False
        load()
        assert [path.read_bytes() for path in folder.glob("models--*/snapshots/*/model.safetensors")] == [expected]
        huggingface_hub.close_session()
    return seen


def kill_trainings(source: Path, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Each file is one that an uninterrupted run writes, the weights fit their config, and the end is always the same.

    The weights are written in one of two dtypes each time: a mixture of two runs would show.
    """
    sizes = {"hidden_size": 8, "layers": 1, "heads": 2, "intermediate_size": 8, "max_tokens": 24, "short_tokens": 12}
    settings = PretrainSettings(vocabulary_size=30, batch_size=2, steps=4, **sizes)
    text = folder / "text"
    for name, count, seed in (("corpus", 100, 1), ("held-out", 10, 2)):
        (text / name).mkdir(parents=True)
        (text / name / "en.txt").write_text("\n".join(sentences("en", count, seed=seed)) + "\n", encoding="utf-8")

    def train(output: Path, dtype: torch.dtype) -> None:
        files = {"corpus_files": [text / "corpus" / "en.txt"], "held_out_files": [text / "held-out" / "en.txt"]}
        loop.pretrain(output=output, settings=settings, save_every=1, save_dtype=dtype, **files)

    states: list[bytes] = []
    save_state = distributed.save_state

    def save_and_keep(path: Path, *arguments: Any) -> None:
        save_state(path, *arguments)
        states.append(numbers_in(path.read_bytes()))

    distributed.save_state = save_and_keep
    whole: dict[torch.dtype, Contents] = {}
    for dtype in (torch.float32, torch.float16):
        train(folder / "whole", dtype)
        whole[dtype] = trained(folder / "whole")
    distributed.save_state = save_state
    slow_down()
    flush = atomic._flush

    def flush_slowly(path: Path) -> None:
        time.sleep(SLOWNESS)
        flush(path)

    atomic._flush = flush_slowly
    output = folder / "out"
    longest = duration_of(lambda: train(output, torch.float32))
    seen: Counter[str] = Counter()
    while seen["kills"] < kills:
        dtype = chance.choice(list(whole))
        if attempt(lambda dtype=dtype: train(output, dtype), chance.uniform(0, longest)):
            seen["done in time"] += 1
            assert trained(output) == whole[dtype]
        else:
            seen["kills"] += 1
            found = trained(output)
            temporary = [name for name in found if name.endswith(".tmp")]
            seen["left something temporary"] += bool(temporary)
            for name in temporary:
                del found[name]
            found.pop("run.lock", None)
            check_training(found, whole, states)
        if chance.random() < 0.3:
            shutil.rmtree(output, ignore_errors=True)
    for dtype, expected in whole.items():
        train(output, dtype)
        assert trained(output) == expected
    return seen


def trained(output: Path) -> Contents:
    """The files of a run, the saved state as its numbers."""
    return {name: numbers_in(data) if name == "training_state.pt" else data for name, data in contents(output).items()}


def numbers_in(state: bytes) -> bytes:
    """The step and all tensors of a saved state: the same numbers may be laid out otherwise in a file."""
    content = torch.load(io.BytesIO(state), weights_only=True)
    moments = [tensor for own in content["optimizer"]["state"].values() for tensor in own.values()]
    tensors = [*content["model"].values(), *moments]
    return b"".join([bytes([content["step"]]), *(bytes(tensor.flatten().view(torch.uint8)) for tensor in tensors)])


def check_training(found: Contents, whole: dict[torch.dtype, Contents], states: list[bytes]) -> None:
    """What a killed run left is what an uninterrupted one has at some moment."""
    for name in found:
        if name == "training_state.pt":
            assert found[name] in states
        else:
            assert any(found[name] == expected[name] for expected in whole.values()), name
    if "config.json" in found:
        dtypes = [dtype for dtype, expected in whole.items() if found["config.json"] == expected["config.json"]]
        assert any(found["model.safetensors"] == whole[dtype]["model.safetensors"] for dtype in dtypes)
        if "evaluation.json" in found:
            assert any(found["evaluation.json"] == whole[dtype]["evaluation.json"] for dtype in dtypes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # tqdm's own lock is shared with the children: one that is killed while it holds it would stop all others for good.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    kind, source, folder, kills, seed = sys.argv[1:]
    kill = {
        "convert": kill_conversions,
        "trim": kill_trims,
        "save": kill_saves,
        "save-m3": kill_m3_saves,
        "tokenizer": kill_tokenizer_saves,
        "download": kill_downloads,
        "pretrain": kill_trainings,
    }
    print(json.dumps(kill[kind](Path(source), Path(folder), int(kills), random.Random(int(seed)))))
