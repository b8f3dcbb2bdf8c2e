"""The study of bugs that the parity kit has not seen. README.md says what counts.

python benchmarks/heldout/run.py effects                   # check each bug's first wrong tap, write effects.json
python benchmarks/heldout/run.py controls                  # right ports: the kit must find nothing
python benchmarks/heldout/run.py study -o cases.jsonl      # diagnose four dumps of each bug, one JSON line for each
python benchmarks/heldout/run.py study -o cases.jsonl --model random --seconds 10 torch-01 jax-02
python benchmarks/heldout/run.py rates cases.jsonl judged-DATE.jsonl
"""

import argparse
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heldout_ports import BUGS, HERE, PORTS, VARIANTS, Array, Bug, dump
from models import TEXTS, control_texts, random_model, tiny

from xlmr_core import XLMRobertaModel, XLMRobertaTokenizer
from xlmr_core.parity.diagnose import diagnose

ROOT = HERE.parent.parent
KINDS = ("full", "layers", "last", "mean")
VERDICTS = ("right", "wrong", "unnamed")


class Study:
    """One checkpoint on one batch, with what our model computes there."""

    def __init__(self, model: str, texts: list[str]) -> None:
        self.folder = tiny() if model == "tiny" else random_model(ROOT / "build" / "heldout-random")
        self.model = XLMRobertaModel.from_pretrained(self.folder).eval()
        batch = XLMRobertaTokenizer.from_pretrained(tiny())(texts)
        self.batch = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        self.ids, self.mask = (tensor.numpy() for tensor in self.batch.values())
        with torch.no_grad(), self.model.capture("**") as taps:
            self.model(**self.batch)
        self.ours = {name: tensor.numpy() for name, tensor in taps.items()}

    def dump(self, port: str, *, dtype: str = "float32", bug: Bug | None = None) -> dict[str, Array]:
        return dump(port, self.folder, self.ids, self.mask, dtype=dtype, changes=bug.changes if bug else ())

    def diagnose(self, taps: Mapping[str, Array], dtype: str = "float32") -> Any:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in taps.items()}
        if dtype != "float32":
            tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
        return diagnose(self.model, self.batch, tensors, dtype=getattr(torch, dtype))

    def part(self, taps: Mapping[str, Array], kind: str) -> dict[str, Array]:
        """The part of a full dump that a developer may have."""
        outputs = ["embeddings.output", *(f"layers.{i}.output" for i in range(self.model.config.num_hidden_layers))]
        if kind == "full":
            return dict(taps)
        if kind == "layers":
            return {name: taps[name] for name in outputs}
        if kind == "last":
            return {outputs[-1]: taps[outputs[-1]]}
        weights = self.mask[..., None] / self.mask.sum(1)[:, None, None]
        return {"sentence.mean": (taps[outputs[-1]] * weights).sum(1).astype(np.float32)}

    def first_wrong(self, first: str, part: Mapping[str, Array]) -> str:
        """The first entry of the part that is wrong, where `first` is the first wrong tap of all."""
        later = list(self.ours)[list(self.ours).index(first) :]
        return next((name for name in later if name in part), next(iter(part)))

    def error(self, taps: Mapping[str, Array], name: str) -> float:
        """The largest difference at real tokens from our model; of hidden keys, only that they are hidden."""
        ours, theirs = self.ours[name].astype(np.float64), taps[name].astype(np.float64)
        if name.endswith("scores"):
            ours, theirs = (np.maximum(values, values.max(-1, keepdims=True) - 104) for values in (ours, theirs))
        real = self.mask.astype(bool)
        if ours.ndim == 4:
            ours, theirs = ours.swapaxes(1, 2), theirs.swapaxes(1, 2)
        return float(np.abs(ours - theirs)[real].max())


def effects(arguments: argparse.Namespace) -> None:
    """Checks that each bug's first wrong tap is as written, and records the sizes of its effect."""
    study, table = Study(arguments.model, TEXTS), {}
    right = {port: study.dump(port) for port in PORTS}
    for bug in chosen(arguments):
        taps = study.dump(bug.port, bug=bug)
        wrong = [n for n in study.ours if study.error(taps, n) > 4 * study.error(right[bug.port], n) + 1e-8]
        last = study.part(taps, "last")
        [name] = last
        table[bug.id] = {
            "at_first": study.error(taps, bug.first),
            "at_last": study.error(taps, name),
            "rounding_at_last": study.error(right[bug.port], name),
        }
        finite = all(np.isfinite(values).all() for n, values in taps.items() if not n.endswith("scores"))
        note = "" if wrong[:1] == [bug.first] and finite else f"  first wrong: {wrong[:2]}, finite: {finite}"
        print(f"{bug.id:9} {bug.first:32} {table[bug.id]['at_first']:.1e} {table[bug.id]['at_last']:.1e}{note}")
    if not arguments.bugs and arguments.model == "tiny":
        (HERE / "effects.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def controls(arguments: argparse.Namespace) -> None:
    """Diagnoses each right port on 20 batches in each precision. Exit status 1 if anything was found."""
    alarms = 0
    for number in range(arguments.inputs):
        study = Study(arguments.model, control_texts(number))
        for port, dtypes in PORTS.items():
            for dtype in dtypes:
                diagnosis = study.diagnose(study.dump(port, dtype=dtype), dtype)
                if diagnosis.findings or diagnosis.tap is not None:
                    alarms += 1
                    print(f"batch {number}, {port}, {dtype}: false alarm\n{diagnosis}")
    count = arguments.inputs * sum(map(len, PORTS.values()))
    print(f"{count} runs of right ports, {alarms} false alarms")
    raise SystemExit(alarms > 0)


def study(arguments: argparse.Namespace) -> None:
    """Diagnoses the four dumps of each bug, in one random order of bugs, and writes what was said."""
    made = Study(arguments.model, TEXTS)
    bugs = chosen(arguments)
    random.Random(0).shuffle(bugs)
    with Path(arguments.output).open("a", encoding="utf-8") as file:
        for bug in bugs:
            taps = made.dump(bug.port, bug=bug)
            for kind in arguments.kinds.split(","):
                line = json.dumps(case(made, bug, kind, taps, arguments.seconds), ensure_ascii=False)
                print(line, file=file, flush=True)


def case(made: Study, bug: Bug, kind: str, taps: Mapping[str, Array], seconds: float) -> dict[str, Any]:
    part = made.part(taps, kind)
    first = made.first_wrong(bug.first, part)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        diagnosis = made.diagnose(part)
        said, names = str(diagnosis), [fault.name for finding in diagnosis.findings for fault in finding.faults]
        found = re.match(r"first divergence: (\S+)", said)
        tap = found[1] if found else None
    except OutOfTime:
        said, tap, names = "", None, []
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "bug": bug.id,
        "dump": kind,
        "model": made.folder.name,
        "first": first,
        "tap": tap,
        "located": tap == first,
        "named": names,
        "said": said,
        "seconds": round(time.process_time() - start, 2),
        "out_of_time": said == "",
    }


class OutOfTime(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def stop(_signal: int, _frame: object) -> None:
    raise OutOfTime


def rates(arguments: argparse.Namespace) -> None:
    """Prints the four rates of each kind of dump, of the cases as they were judged."""
    cases = [json.loads(line) for line in Path(arguments.cases).read_text(encoding="utf-8").splitlines()]
    lines = Path(arguments.judged).read_text(encoding="utf-8").splitlines()
    judged = {(line["bug"], line["dump"]): line["verdict"] for line in map(json.loads, lines)}
    print("| dump | cases | located | named right | wrong name | unnamed | out of time | median processor seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        rows = [row for row in cases if row["dump"] == kind]
        if not rows:
            continue
        counts = Counter(judged[row["bug"], kind] for row in rows)
        shares = [sum(row["located"] for row in rows), *(counts[verdict] for verdict in VERDICTS)]
        late = sum(row["out_of_time"] for row in rows)
        texts = " | ".join(f"{share} ({share / len(rows):.0%})" for share in shares)
        print(f"| {kind} | {len(rows)} | {texts} | {late} | {np.median([row['seconds'] for row in rows]):.1f} |")


def chosen(arguments: argparse.Namespace) -> list[Bug]:
    return [(BUGS | VARIANTS)[name] for name in arguments.bugs] or list(BUGS.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for action in (effects, controls, study):
        command = commands.add_parser(action.__name__, help=action.__doc__)
        command.set_defaults(action=action)
        command.add_argument("--model", choices=("tiny", "random"), default="tiny")
    commands.choices["controls"].add_argument("--inputs", type=int, default=20)
    for name in ("effects", "study"):
        commands.choices[name].add_argument("bugs", nargs="*", metavar="BUG")
    commands.choices["study"].add_argument("-o", "--output", required=True)
    commands.choices["study"].add_argument(
        "--seconds", type=float, default=5.0, help="processor time that a case may take"
    )
    commands.choices["study"].add_argument("--kinds", default=",".join(KINDS), help="kinds of dumps")
    command = commands.add_parser("rates", help=rates.__doc__)
    command.set_defaults(action=rates)
    command.add_argument("cases")
    command.add_argument("judged")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, stop)
    arguments = parser.parse_args()
    arguments.action(arguments)


if __name__ == "__main__":
    main()
