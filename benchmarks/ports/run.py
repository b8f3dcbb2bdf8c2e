"""Other implementations of XLM-R, each in an environment of its own, judged by the parity kit.

    python benchmarks/ports/run.py --texts FILE --work FOLDER            # all ports
    python benchmarks/ports/run.py --texts FILE --work FOLDER fastembed  # those whose names begin so
    python benchmarks/ports/run.py --page                                # only write docs/ports.md again

Each port runs on xlmr-tiny and on a model of base size with random weights. It gives what it can: the ids of the lines
of FILE, the hidden states of one batch, and the vectors of the texts of `xlmr parity probe`. Environments and
checkpoints are kept in FOLDER. uv and npm must be there, and the package registries; the model hub is not asked.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from page import RESULTS, write_page
from ports import KIT, PACKAGES, PORTS, Port
from verdicts import Checked

from xlmr_core import XLMRobertaConfig, XLMRobertaModel

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKENIZER = ("sentencepiece.bpe.model", "tokenizer_config.json")
# transformers.js takes these from no other file.
SPECIALS = {f"{name}_token": text for name, text in zip(("bos", "eos", "cls", "sep"), ("<s>", "</s>") * 2, strict=True)}
SPECIALS |= {"unk_token": "<unk>", "pad_token": "<pad>"}
LONGEST = 100  # tokens of a line that is compared: no tokenizer cuts it
SECONDS = 1800  # for one script
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names of ports; by default all")
    parser.add_argument("--texts", type=Path, help="a file with a text a line, in many languages")
    parser.add_argument("--work", type=Path, help="where environments and checkpoints are made and kept")
    parser.add_argument("--vocabulary", type=Path, help="a folder with XLM-R's tokenizer files, for the base size")
    parser.add_argument("--models", nargs="+", choices=["tiny", "base"], default=["tiny", "base"])
    parser.add_argument("--no-vectors", action="store_true", help="do not judge vectors: at base size it takes minutes")
    parser.add_argument("--page", action="store_true", help="write docs/ports.md from the stored results, and end")
    arguments = parser.parse_args()
    if not arguments.page:
        if arguments.texts is None or arguments.work is None:
            parser.error("--texts and --work are needed")
        chosen = named(arguments.names) if arguments.names else list(PORTS)
        folder, vectors = arguments.work.resolve(), not arguments.no_vectors
        run(chosen, arguments.models, folder, arguments.texts, arguments.vocabulary, vectors=vectors)
    write_page()


def named(names: list[str]) -> list[Port]:
    """The ports with these names, and of what is not a name, those whose names begin so."""
    beginnings = tuple(name for name in names if all(port.name != name for port in PORTS))
    return [port for port in PORTS if port.name in names or port.name.startswith(beginnings)]


def run(
    ports: list[Port], models: list[str], work: Path, texts_file: Path, vocabulary: Path | None, *, vectors: bool
) -> None:
    """Runs the ports on the models, and stores what the kit says about each as soon as it is known."""
    for size in models:
        folder = checkpoint(size, work, vocabulary)
        precisions = sorted({"float32", *(port.dtype for port in ports if port.dtype)})
        checked = Checked(folder, lines(texts_file, folder), precisions)
        request = work / f"{size}.json"
        request.write_text(json.dumps(checked.request()), encoding="utf-8")
        for port in ports:
            started = time.monotonic()
            verdict = ask(port, checked, folder, request, work, vectors=vectors)
            print(
                f"{port.name}, {size}, {time.monotonic() - started:.0f} s: {json.dumps(verdict, indent=1)}", flush=True
            )
            store(port, size, verdict, work)


def lines(file: Path, folder: Path) -> list[str]:
    """The lines of a file that no port cuts, each once."""
    from xlmr_core import XLMRobertaTokenizer

    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    found = dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in found if line and len(tokenizer.encode([line])[0]) <= LONGEST]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(size: str, work: Path, vocabulary: Path | None) -> Path:
    """A folder as sentence-transformers and the exporters want it; made once."""
    folder = work / "models" / size
    if (folder / "onnx" / "model.onnx").exists():  # the last file that is written
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tiny = ROOT / "weights" / "xlmr-tiny"
    model = XLMRobertaModel.from_pretrained(tiny) if size == "tiny" else random_base()
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile((vocabulary or tiny if size == "base" else tiny) / name, folder / name)
    tokenizer = json.loads((folder / TOKENIZER[1]).read_text(encoding="utf-8"))
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write(folder / TOKENIZER[1], tokenizer | SPECIALS | {"model_max_length": model.config.max_tokens})
    kinds = [(path, f"sentence_transformers.models.{name}") for name, path in modules]
    write(folder / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(kinds)])
    pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "sentence_bert_config.json", {"max_seq_length": model.config.max_tokens, "do_lower_case": False})
    subprocess.run([interpreter("export", work), HERE / "export.py", folder], check=True, env=os.environ | OFFLINE)
    return folder


def random_base() -> XLMRobertaModel:
    """Random weights of base size. Biases and norms are drawn, too: a fault that loses one would not show otherwise."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(initializer_range=0.05)
    model = XLMRobertaModel(config)
    model.initialize()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, mean=1, std=0.1)
    return model


def write_gguf(folder: Path, work: Path) -> None:
    """Writes model.gguf with llama.cpp's own converter, which is in the source package of llama-cpp-python."""
    if (folder / "model.gguf").exists():
        return
    sources = work / "sources"
    if not sources.exists():
        download = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", work, "llama-cpp-python"]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        [archive] = work.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(sources, filter="data")
    [converter] = sources.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py")
    options = ["--outtype", "f32", "--outfile", folder / "model.gguf"]
    subprocess.run([interpreter("gguf", work), converter, folder, *options], check=True, env=os.environ | OFFLINE)


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


# ---- environments ----------------------------------------------------------------------------------------------------


def interpreter(name: str, work: Path) -> Path:
    """The Python of an environment, which is made if it is not there."""
    folder = work / "environments" / name
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        packages = [str(ROOT) if package == KIT else package for package in PACKAGES[name]]
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", platform.python_version(), folder], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *packages], check=True)
        (folder / "done").touch()
    return python


def node_packages(name: str, work: Path) -> Path:
    """The folder with the packages of npm, which are installed if they are not there."""
    folder = work / "environments" / name
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *PACKAGES[name]]
        subprocess.run(install, check=True, env=os.environ | {"ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"})
        (folder / "done").touch()
    return folder


def versions(port: Port, work: Path) -> dict[str, str]:
    """The versions of the packages that the page lists."""
    if script_of(port).suffix == ".mjs":
        modules = work / "environments" / port.environment / "node_modules"
        return {name: json.loads((modules / name / "package.json").read_text())["version"] for name in port.shown}
    code = f"import importlib.metadata as m; print(*[m.version(name) for name in {port.shown!r}])"
    found = subprocess.run(
        [interpreter(port.environment, work), "-c", code], check=True, capture_output=True, text=True
    )
    return dict(zip(port.shown, found.stdout.split(), strict=True))


def script_of(port: Port) -> Path:
    scripts = (port.script, f"with_{port.environment}.py", f"with_{port.environment}.mjs")
    return next(HERE / name for name in scripts if name and (HERE / name).exists())


# ---- a port ----------------------------------------------------------------------------------------------------------


def ask(
    port: Port, checked: Checked, folder: Path, request: Path, work: Path, *, vectors: bool = True
) -> dict[str, Any]:
    """Runs the script of a port, and judges what it wrote: a verdict for each thing that the port gives."""
    if port.environment == "node_llama_cpp":
        write_gguf(folder, work)
    out = work / "answer"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    arguments = [folder, request, out, port.option]
    script = script_of(port)
    if script.suffix == ".mjs":  # node looks for packages beside the script
        run = ["node", shutil.copy(script, node_packages(port.environment, work)), *arguments]
    else:
        run = [interpreter(port.environment, work), script, *arguments]
    log = work / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(run, env=os.environ | OFFLINE, stdout=file, stderr=file, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return {"errors": {"script": f"it did not end within {SECONDS} s"}}
    if done.returncode:
        printed = log.read_text(encoding="utf-8").strip().splitlines()
        last = printed[-1] if printed else f"exit status {done.returncode}, and nothing printed"
        return {"errors": {"script": last.replace(str(work.resolve()), "WORK")}}
    answer = json.loads((out / "answer.json").read_text(encoding="utf-8"))
    verdict: dict[str, Any] = {"errors": answer["errors"]}
    ids = checked.ids(answer["ids"]) if answer.get("ids") else None
    if ids is not None:
        verdict["ids"] = ids.as_dict()
    dumps = [file for file in (out / "dump.npz", out / "dump.safetensors") if file.exists()]
    if dumps and "taps" not in answer["errors"] and answer.get("taps"):
        verdict["states"] = checked.states(dumps[0], port.dtype)
    if vectors and answer.get("vectors"):
        verdict["vectors"] = checked.vectors(answer["vectors"], ids)
    return verdict


def store(port: Port, size: str, verdict: dict[str, Any], work: Path) -> None:
    """Puts the verdict among the stored results, in place of an older one."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"ports": {}}
    results |= {"python": platform.python_version(), "machine": platform.machine()}
    entry = results["ports"].setdefault(port.name, {"models": {}})
    entry |= {"versions": versions(port, work), "dtype": port.dtype, "note": port.note}
    entry["models"][size] = verdict | {"date": date.today().isoformat()}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
