"""Texts to vectors: `Embed` beside transformers, in one process, taken in turn, medians and ratios.

    python benchmarks/encode.py en.txt de.txt --vocabulary FOLDER
    XLMR_SHARED=... python benchmarks/encode.py          # texts and vocabulary from that folder

The lengths of the texts are log-normal (median 28 tokens), cut from the lines of the files. Weights are random, in the
geometry of xlm-roberta-base; the vectors are means over the tokens. A peer is timed only if its vectors agree with
ours; a text that transformers' tokenizer cuts differently (docs/tokenizer-differences.md) is left out. transformers
runs as its users write it: batches of 32 texts in the order in which they come, and sorted by length first.
sentence-transformers, OpenVINO, onnxruntime and CTranslate2 take part where they are installed, the last three in
batches that are sorted by length, and the last two only in float32.

    python benchmarks/encode.py --fill-mask              # `FillMask` beside transformers' pipeline instead
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from forward import GEOMETRY
from torch import Tensor, nn

from xlmr_core import Embed, FillMask, XLMRobertaTokenizer

MEDIAN_TOKENS, SIGMA = 28, 0.8  # of the log-normal lengths
LONGEST = 510  # tokens, without <s> and </s>
BATCH = 32  # texts, of the peers
INPUTS = ["input_ids", "attention_mask"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # largest difference from our float32 vectors, in their largest entry

Encode = Callable[[list[str]], Tensor]


def make_texts(paths: list[Path], tokenizer: XLMRobertaTokenizer, count: int) -> list[str]:
    """Texts of log-normal length: consecutive lines of one file, cut at a token."""
    chance = random.Random(0)
    files = [path.read_text(encoding="utf-8").splitlines() for path in paths]
    texts: list[str] = []
    while len(texts) < count:
        wanted = min(LONGEST, max(1, round(chance.lognormvariate(0, SIGMA) * MEDIAN_TOKENS)))
        lines = chance.choice(files)
        start = chance.randrange(len(lines))
        text = " ".join(lines[start : start + 30])
        tokens = tokenizer.tokenize(text, specials_in_text=False)[:wanted]
        if tokens and len(tokenizer.encode([text[: tokens[-1].end]])[0]) <= LONGEST:  # a cut may split a piece
            texts.append(text[: tokens[-1].end])
    return texts


def padded_encoder(folder: str, hidden_of: Callable[[Any], Tensor], *, by_length: bool = True) -> Encode:
    """Means over the real tokens, in padded batches.

    Args:
        folder: Of the tokenizer.
        hidden_of: NumPy arrays of input_ids and attention_mask, (B, S) -> hidden states, (B, S, H).
        by_length: Whether the texts are sorted by their length first.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def encode(texts: list[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if by_length else list(range(len(texts)))
        vectors: dict[int, Tensor] = {}
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            batch = tokenizer([texts[i] for i in numbers], padding=True, return_tensors="np")
            hidden = hidden_of(batch)
            real = torch.from_numpy(batch["attention_mask"])[..., None]
            vectors.update(zip(numbers, (hidden * real).sum(dim=1) / real.sum(dim=1), strict=True))
        return torch.stack([vectors[i] for i in range(len(texts))])

    return encode


def transformers_encoder(folder: str, dtype: torch.dtype, *, by_length: bool) -> Encode:
    import transformers

    model = transformers.XLMRobertaModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()

    def hidden_of(batch: Any) -> Tensor:
        return model(**{name: torch.from_numpy(batch[name]) for name in INPUTS}).last_hidden_state.float()

    return padded_encoder(folder, hidden_of, by_length=by_length)


def sentence_transformers_encoder(folder: str, dtype: torch.dtype) -> Encode:
    from sentence_transformers import SentenceTransformer, models

    body = models.Transformer(folder)
    model = SentenceTransformer(modules=[body, models.Pooling(body.get_word_embedding_dimension())]).to(dtype)
    return lambda texts: model.encode(texts, batch_size=BATCH, convert_to_tensor=True).float()


class HiddenStates(nn.Module):
    """transformers' model with two arguments and one output, as an exporter wants it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def exported(folder: str) -> Path:
    """transformers' model as an ONNX file."""
    import transformers

    path = Path(folder, "onnx", "model.onnx")
    if not path.exists():
        path.parent.mkdir()
        model = transformers.XLMRobertaModel.from_pretrained(folder, attn_implementation="eager").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        axes = {0: "batch", 1: "sequence"}
        example = tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
        torch.onnx.export(
            HiddenStates(model),
            tuple(example[name] for name in INPUTS),
            str(path),
            input_names=INPUTS,
            output_names=["hidden"],
            dynamic_axes=dict.fromkeys([*INPUTS, "hidden"], axes),
            dynamo=False,
        )
    return path


def onnxruntime_encoder(folder: str) -> Encode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(exported(folder)), options, providers=["CPUExecutionProvider"])

    def hidden_of(batch: Any) -> Tensor:
        return torch.from_numpy(session.run(["hidden"], {name: batch[name] for name in INPUTS})[0])

    return padded_encoder(folder, hidden_of)


def openvino_encoder(folder: str, dtype: torch.dtype) -> Encode:
    import openvino

    precision = "bf16" if dtype == torch.bfloat16 else "f32"
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(str(exported(folder)), "CPU", settings)

    def hidden_of(batch: Any) -> Tensor:
        return torch.from_numpy(compiled({name: batch[name] for name in INPUTS})["hidden"])

    return padded_encoder(folder, hidden_of)


def ctranslate2_encoder(folder: str) -> Encode:
    import ctranslate2
    import numpy as np

    converted = Path(folder, "ctranslate2")
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(folder).convert(str(converted))
    encoder = ctranslate2.Encoder(str(converted), "cpu", intra_threads=torch.get_num_threads())

    def hidden_of(batch: Any) -> Tensor:
        rows = [ids[real].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"] == 1, strict=True)]
        return torch.from_numpy(np.array(encoder.forward_batch(rows).last_hidden_state))

    return padded_encoder(folder, hidden_of)


def encoders(folder: str, dtype_name: str) -> dict[str, Encode]:
    """What is timed; ours first."""
    dtype = getattr(torch, dtype_name)
    found: dict[str, Encode] = {
        "xlmr-core": Embed.from_pretrained(folder, dtype=dtype).batch,
        "transformers, sorted": transformers_encoder(folder, dtype, by_length=True),
        "transformers, as it comes": transformers_encoder(folder, dtype, by_length=False),
    }
    if importlib.util.find_spec("sentence_transformers"):
        found["sentence-transformers"] = sentence_transformers_encoder(folder, dtype)
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx"):
        found["OpenVINO, sorted"] = openvino_encoder(folder, dtype)
    if dtype_name == "float32":
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
            found["onnxruntime, sorted"] = onnxruntime_encoder(folder)
        if importlib.util.find_spec("ctranslate2"):
            found["CTranslate2, sorted"] = ctranslate2_encoder(folder)
    return found


def fillers(folder: str, dtype_name: str) -> dict[str, Encode]:
    """The same for `--fill-mask`: of each text the logarithm of the best score."""
    import transformers

    dtype = getattr(torch, dtype_name)
    fill = FillMask.from_pretrained(folder, dtype=dtype)
    pipeline = transformers.pipeline("fill-mask", folder, dtype=dtype, top_k=5)

    def ours(texts: list[str]) -> Tensor:
        return torch.tensor([mask[0].score for [mask] in fill.batch(texts, top_k=5)]).log()

    def theirs(texts: list[str]) -> Tensor:
        return torch.tensor([mask[0]["score"] for mask in pipeline(texts, batch_size=BATCH)]).log()

    return {"xlmr-core": ours, "transformers' pipeline": theirs}


def with_a_mask(texts: list[str]) -> list[str]:
    """Each text with a mask in the place of its middle word."""
    masked: list[str] = []
    for text in texts:
        words = text.split() or [""]
        words[len(words) // 2] = "<mask>"
        masked.append(" ".join(words))
    return masked


def measure(found: dict[str, Encode], texts: list[str], exact: Tensor, dtype: str, runs: int) -> list[dict[str, Any]]:
    """Checks every encoder against our float32 vectors, then times them in turn.

    Returns:
        For each its median seconds, and the median of its time over ours in the same turn.
    """
    for name, encode in found.items():
        difference = float((encode(texts) - exact).abs().max() / exact.abs().max())
        if not difference <= TOLERANCE[dtype]:
            raise SystemExit(
                f"not timed: the {dtype} vectors of {name} differ by {difference:.1e} from ours in float32"
            )
    turns: list[dict[str, float]] = []
    for _ in range(runs):
        turn: dict[str, float] = {}
        for name, encode in found.items():
            start = time.perf_counter()
            encode(texts)
            turn[name] = time.perf_counter() - start
        turns.append(turn)
    return [
        {
            "encoder": name,
            "dtype": dtype,
            "seconds": statistics.median(turn[name] for turn in turns),
            "times_ours": statistics.median(turn[name] / turn["xlmr-core"] for turn in turns),
        }
        for name in found
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="text files; by default those of XLMR_SHARED")
    parser.add_argument("--vocabulary", type=Path, help="a folder with the files of the tokenizer")
    parser.add_argument("--size", choices=GEOMETRY, default="base")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE))
    parser.add_argument("--fill-mask", action="store_true", help="one mask a text, and its best pieces")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()

    import transformers

    shared = os.environ.get("XLMR_SHARED")
    if shared is None and not (arguments.files and arguments.vocabulary):
        parser.error("give text files and --vocabulary, or set XLMR_SHARED")
    paths = arguments.files or sorted(Path(shared or "", "corpus", "ntrex128_ccbysa4").glob("*.txt"))
    vocabulary = arguments.vocabulary or Path(shared or "", "tokenizer", "xlm-roberta-base")
    tokenizer = XLMRobertaTokenizer.from_pretrained(vocabulary)
    texts = make_texts(paths, tokenizer, arguments.texts)
    theirs = transformers.AutoTokenizer.from_pretrained(vocabulary)(texts, add_special_tokens=False)["input_ids"]
    texts = [text for text, ids, other in zip(texts, tokenizer.encode(texts), theirs, strict=True) if ids == other]
    print(f"{arguments.texts - len(texts)} of {arguments.texts} texts left out: transformers gives them other ids")
    if arguments.fill_mask:
        texts = with_a_mask(texts)
    lengths = [len(ids) + 2 for ids in tokenizer.encode(texts)]

    sizes = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    for_ctranslate2 = {"position_embedding_type": "absolute"}  # its converter reads it; transformers 5 leaves it out
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = transformers.XLMRobertaConfig(**sizes, **GEOMETRY[arguments.size], **for_ctranslate2)
        transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
        for file in vocabulary.iterdir():
            if file.name in ("sentencepiece.bpe.model", "tokenizer.json", "tokenizer_config.json"):
                Path(folder, file.name).write_bytes(file.read_bytes())
        make = fillers if arguments.fill_mask else encoders
        exact = make(folder, "float32")["xlmr-core"](texts)
        for dtype in arguments.dtypes:
            for row in measure(make(folder, dtype), texts, exact, dtype, arguments.runs):
                rows.append(row)
                rate = sum(lengths) / row["seconds"]
                print(
                    f"{dtype:8}  {row['encoder']:26}  {row['seconds']:7.2f} s  {rate:7.0f} tokens/s  "
                    f"{row['times_ours']:.2f} times our time",
                    flush=True,
                )
    peers = ["torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "ctranslate2"]
    report = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in peers if importlib.util.find_spec(name.replace("-", "_"))},
        "texts": len(texts),
        "tokens": {"sum": sum(lengths), "median": statistics.median(lengths), "longest": max(lengths)},
        "runs": arguments.runs,
        "rows": rows,
    }
    name = "fill-mask-pipeline" if arguments.fill_mask else "encode"
    output = arguments.output or Path(__file__).parent / "results" / f"{name}-{arguments.size}-cpu.json"
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
