"""How many right ports `xlmr_core.parity.leaning` suspects, and which faults below the noise floors it finds.

    PYTHONPATH=.:tests python benchmarks/leaning.py                    # 1000 right runs, an hour on one busy core
    PYTHONPATH=.:tests python benchmarks/leaning.py --runs 100 --compiled 0 -o build/leaning.md

Right runs are those of small random models with norms after and before the sublayers, large weights and small ones, on
random padded inputs, by transformers (eager, sdpa, under autocast), by this package (sdpa, packed, compiled) and by the
NumPy port of the tests (in float32, in float16, and with every tensor rounded after it), in float32, bfloat16 and
float16. The dump has all taps, the outputs of the layers, or the last hidden state. No run is left out, and every
leaning that is no quantisation counts as wrong.

The faults are made in transformers' model, with the weights of the bundled xlmr-tiny and three sentences.
"""

import argparse
import itertools
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import reference
import torch
import transformers
from kit import numpy_port, transformers_faults
from torch import Tensor
from tqdm import tqdm

from xlmr_core import XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.model import position_ids_from
from xlmr_core.parity.adapters import dump_of, transformers_model
from xlmr_core.parity.compare import compare
from xlmr_core.parity.floors import measure_floors
from xlmr_core.parity.int8 import quantise
from xlmr_core.parity.leaning import leanings
from xlmr_core.parity.local import Inputs
from xlmr_core.parity.tap_values import Dump, unpacked
from xlmr_core.parity.variants import variant
from xlmr_core.paths import package_data

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DUMPS = ("all taps", "layer outputs", "last hidden state")
SUBTLE = ("gelu_tanh", "eps_of_bert", "norm_unbiased", "k_bias_missing", "lm_head_gelu_tanh")
TEXTS = ["I do not know what to do with all of this.", "Bonjour tout le monde", "the cat sees the dog"]


# ---- right runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A random model in our class and in transformers', and an input."""

    pair: reference.Pair
    port: Any  # the same weights in the NumPy port


def cases(seed: int) -> Iterator[Case]:
    """Random models without end."""
    for number in itertools.count(seed):
        draw = torch.Generator().manual_seed(number)
        heads, layers = 2 + 2 * (number % 2), 2 + number % 2
        config = replace(
            reference.POST_NORM,
            hidden_size=heads * (8 + 4 * (number % 3)),
            num_attention_heads=heads,
            num_hidden_layers=layers,
            intermediate_size=64 + 16 * (number % 4),
            layer_norm_eps=1e-5,
            norm_first=number % 4 == 3,
        )
        pair = reference.build_pair(config)
        with torch.no_grad():
            reference.randomize(pair.theirs, seed=number)
            if number % 2:
                for parameter in pair.theirs.parameters():
                    parameter.mul_(0.2)
        reference.copy_weights(pair.theirs, pair.ours, reference.masked_lm_keys(config))
        with TemporaryDirectory() as folder:
            pair.ours.save_pretrained(folder)
            port = numpy_port.load(Path(folder))
        yield Case(replace(pair, batch=random_batch(config, draw)), port)


def random_batch(config: XLMRobertaConfig, draw: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.randint(3, 16, (4,), generator=draw)
    ids = torch.randint(4, config.vocab_size, (4, int(lengths.max())), generator=draw)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, config.pad_token_id), "attention_mask": mask}


Port = Callable[[Case, torch.dtype], Dump]


def by_transformers(case: Case, dtype: torch.dtype) -> Dump:
    return dump_of(transformers_copy(case, dtype), case.pair.batch)


def by_transformers_fused(case: Case, dtype: torch.dtype) -> Dump:
    return dump_of(transformers_copy(case, dtype, "sdpa"), case.pair.batch)


def by_autocast(case: Case, dtype: torch.dtype) -> Dump:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return dump_of(case.pair.theirs, case.pair.batch)


def by_ours_fused(case: Case, dtype: torch.dtype) -> Dump:
    return dump_of(variant(case.pair.ours, dtype, "sdpa", "cpu"), case.pair.batch)


def by_ours_packed(case: Case, dtype: torch.dtype) -> Dump:
    ids, real = case.pair.batch["input_ids"], case.pair.real
    positions = position_ids_from(ids, case.pair.config.pad_token_id)
    packed = {"input_ids": ids[real], "position_ids": positions[real], "lengths": real.sum(dim=1)}
    found = dump_of(variant(case.pair.ours, dtype, "sdpa", "cpu"), packed)
    return {tap: unpacked(tap, tensor, real) for tap, tensor in found.items()}


def by_compiled(case: Case, dtype: torch.dtype) -> Dump:
    torch.compiler.reset()
    model = variant(case.pair.ours, dtype, "eager", "cpu")
    with torch.no_grad(), model.capture("**") as seen:
        torch.compile(model)(**case.pair.batch)
    return dict(seen)


def by_numpy(case: Case, dtype: torch.dtype) -> Dump:
    """In float32 or float16 throughout; for bfloat16, which NumPy lacks, in float32 with every tensor rounded after."""
    numbers = np.float16 if dtype == torch.float16 else np.float32
    weights = {name: torch.from_numpy(w).to(dtype).float().numpy() for name, w in case.port["tensors"].items()}
    port = {"settings": case.port["settings"], "tensors": {name: w.astype(numbers) for name, w in weights.items()}}
    return {tap: t.to(dtype) for tap, t in numpy_port.as_taps(port, case.pair.batch).items()}


def by_numpy_in_float32(case: Case, dtype: torch.dtype) -> Dump:
    """In float32, with weights in float32; only the dump is rounded."""
    return {tap: t.to(dtype) for tap, t in numpy_port.as_taps(case.port, case.pair.batch).items()}


PORTS: dict[str, Port] = {
    "transformers, eager": by_transformers,
    "transformers, sdpa": by_transformers_fused,
    "transformers, autocast": by_autocast,
    "xlmr-core, sdpa": by_ours_fused,
    "xlmr-core, packed": by_ours_packed,
    "NumPy": by_numpy,
    "NumPy in float32, dump rounded": by_numpy_in_float32,
}


def transformers_copy(case: Case, dtype: torch.dtype, attention: str = "eager") -> Any:
    model = reference.build_reference(case.pair.config, attention, "ForMaskedLM")  # pyright: ignore[reportArgumentType]
    model.load_state_dict(case.pair.theirs.state_dict())
    return model.to(dtype).eval()


def reduced(dump: Dump, kind: str, layers: int) -> Dump:
    """The dump with fewer taps."""
    if kind == "all taps":
        return dump
    names = [f"layers.{i}.output" for i in range(layers)]
    return {tap: dump[tap] for tap in (names if kind == "layer outputs" else names[-1:])}


def right_runs(count: int, compiled: int, seed: int) -> list[tuple[str, str, str, str]]:
    """Port, dtype, dump and the leanings of each run; "" where there is none."""
    ports = itertools.cycle(PORTS.items())
    settings = itertools.cycle(itertools.product(DUMPS, DTYPES))  # 9 settings and 7 ports: all pairs come in turn
    rows: list[tuple[str, str, str, str]] = []
    models = cases(seed)
    case = next(models)
    for number in tqdm(range(count + compiled)):
        if number and (number % 7 == 0 or number >= count):
            case = next(models)
        name, port = next(ports) if number < count else ("xlmr-core, compiled", by_compiled)
        kind, dtype = next(settings)
        dump = reduced(port(case, dtype), kind, case.pair.config.num_hidden_layers)
        inputs = Inputs(case.pair.batch["input_ids"], case.pair.batch["attention_mask"])
        found = leanings(case.pair.ours, inputs, dump, dtype)
        wrong = [str(leaning) for leaning in found]
        for line in wrong:
            tqdm.write(f"{name}, {dtype}, {kind}, model {number}: {line}")
        rows.append((name, str(dtype).removeprefix("torch."), kind, "; ".join(wrong)))
    return rows


# ---- power -----------------------------------------------------------------------------------------------------------


def power() -> Iterator[tuple[str, ...]]:
    """Fault, dtype, what the floors say, and what is found with each kind of dump."""
    folder = package_data("xlmr-tiny")
    ours = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny").eval()
    batch = dict(XLMRobertaTokenizer.from_pretrained("xlmr-tiny")(TEXTS))
    layers = ours.config.num_hidden_layers
    floors = measure_floors(ours, batch)
    truth = dump_of(ours, batch)
    inputs = Inputs(batch["input_ids"], batch["attention_mask"])
    for name, dtype in itertools.product((*SUBTLE, "int8-per-channel"), DTYPES):
        if name.startswith("int8"):
            model = variant(ours, dtype, "eager", "cpu")
            quantise(model, name)
            dump = dump_of(model, batch)
        else:
            model = transformers_model(str(folder), "XLMRobertaForMaskedLM", False, "eager", dtype)
            with pytest.MonkeyPatch.context() as patched:
                transformers_faults.FAULTS[name](model, patched)
                dump = dump_of(model, batch)
        wrong = compare(truth, dump, real=inputs.real, floors=floors).first_divergence
        cells = [f"diverges at {wrong.tap}" if wrong else "within noise"]
        for kind in DUMPS:
            found = leanings(ours, inputs, reduced(dump, kind, layers), dtype)
            cells.append("<br>".join(f"{one.name} {one.size:.2f} ± {one.error:.2f}" for one in found) or "-")
        yield (name, str(dtype).removeprefix("torch."), *cells)


# ---- the page --------------------------------------------------------------------------------------------------------


def table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def page(runs: list[tuple[str, str, str, str]], found: list[tuple[str, ...]]) -> str:
    wrong = [row for row in runs if row[3]]
    counts = Counter((name, kind) for name, _, kind, _ in runs)
    names = list(dict.fromkeys(name for name, *_ in runs))
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    about = f"{date.today():%d %B %Y}, {platform.machine()}, {versions}"
    lines = [
        "# What noise hides",
        "",
        f"`PYTHONPATH=.:tests python benchmarks/leaning.py`, {about}.",
        "",
        "## Right runs",
        "",
        f"{len(runs)} runs, {len(wrong)} of them with a leaning. Numbers of runs:",
        "",
        *table([("port", *DUMPS), *((name, *(str(counts[name, kind]) for kind in DUMPS)) for name in names)]),
        "",
        *(f"- {', '.join(row)}" for row in wrong),
        "",
        "## Faults",
        "",
        "Made in transformers' model (int8 in ours), xlmr-tiny, three sentences. Under a kind of dump: what is found,",
        "with its size; - is nothing.",
        "",
        *table([("fault", "dtype", "floors", *DUMPS), *found]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--compiled", type=int, default=9, help="runs of compiled models, some 20 s each")
    parser.add_argument("--seed", type=int, default=1000, help="of the first model")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "leaning.md")
    options = parser.parse_args()
    found = list(power())
    text = page(right_runs(options.runs, options.compiled, options.seed), found)
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
