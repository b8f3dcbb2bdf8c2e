"""The time of a forward pass, ours and that of transformers: in one process, in turn, medians and ratios.

    python benchmarks/forward.py                                   # base geometry, float32, CPU
    python benchmarks/forward.py --device cuda --dtype bfloat16    # on a GPU

Weights are random, in the geometry of xlm-roberta-base (or --size large). A setting is timed only if both give the
same numbers: bit for bit for padded batches on the CPU in float32, else our error against float64 is at most 1.5 times
that of transformers. transformers has only padded batches; ours are padded and packed.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_core import XLMRobertaForMaskedLM

GEOMETRY = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def make_batch(lengths: list[int], vocab_size: int, device: str) -> tuple[Tensor, Tensor]:
    """Random ids, padded to the longest text: input_ids and attention_mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(lengths), max(lengths)), 1)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, vocab_size, (length,), generator=generator)
    return ids.to(device), (ids != 1).long().to(device)


def agree(ours: Tensor, theirs: Tensor, truth: Tensor | None) -> bool:
    """Whether two results are the same bits, or, given the float64 `truth`, ours is about as near to it as theirs."""
    if truth is None:
        return torch.equal(ours, theirs)
    return bool((ours.double() - truth).abs().max() <= 1.5 * (theirs.double() - truth).abs().max())


def seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def calls(ours: Any, theirs: Any, ids: Tensor, mask: Tensor) -> dict[str, tuple[Callable[[], Tensor], ...]]:
    """The calls to time: ours, and that of transformers. Fill-mask computes the logits of one token of each text."""
    at = torch.zeros_like(mask, dtype=torch.bool)
    at[:, 1] = True
    real = mask.bool()
    packed: dict[str, Any] = {"lengths": real.sum(dim=1)}
    timed: dict[str, tuple[Callable[[], Tensor], ...]] = {
        "encoder": (
            lambda: ours.encoder(ids, mask).last_hidden_state,
            lambda: theirs.roberta(ids, attention_mask=mask).last_hidden_state,
        ),
        "fill-mask": (
            lambda: ours(ids, mask, positions=at).logits,
            lambda: theirs(ids, attention_mask=mask).logits[at],
        ),
    }
    if not real.all():
        timed |= {
            "encoder, packed": (
                lambda: ours.encoder(ids[real], **packed).last_hidden_state,
                timed["encoder"][1],
            ),
            "fill-mask, packed": (
                lambda: ours(ids[real], positions=at[real], **packed).logits,
                timed["fill-mask"][1],
            ),
        }
    return timed


@torch.inference_mode()
def measure(ours: Any, theirs: Any, exact: Any, lengths: list[int], runs: int) -> list[dict[str, Any]]:
    """Checks that both agree, then times them in turn. `exact` is our model in float64, for what may be rounded."""
    device = ours.lm_head.dense.weight.device.type
    ids, mask = make_batch(lengths, ours.config.vocab_size, device)
    real = mask.bool()
    rows: list[dict[str, Any]] = []
    for what, (mine, other) in calls(ours, theirs, ids, mask).items():
        if what.startswith("encoder"):
            same_bits = device == "cpu" and ours.lm_head.dense.weight.dtype == torch.float32 and "packed" not in what
            truth = None if same_bits else exact.encoder(ids, mask).last_hidden_state[real]
            found = mine() if "packed" in what else mine()[real]
            if not agree(found, other()[real], truth):
                raise SystemExit(f"not timed: {what} with lengths {lengths} differs from transformers")
        times = [(seconds(mine, device), seconds(other, device)) for _ in range(runs + 1)][1:]
        ms, transformers_ms = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(theirs_s / ours_s for ours_s, theirs_s in times)
        rows.append(
            {"what": what, "lengths": lengths, "ms": ms, "transformers_ms": transformers_ms, "times_faster": ratio}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=GEOMETRY, default="base", help="sizes of the model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="dtype of both models"
    )
    parser.add_argument("--runs", type=int, default=9, help="number of runs of each call, in turn")
    parser.add_argument("-o", "--output", type=Path, help="also write the results to this file, as JSON")
    arguments = parser.parse_args()

    import transformers

    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    sizes = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config = transformers.XLMRobertaConfig(**sizes, **GEOMETRY[arguments.size])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.XLMRobertaForMaskedLM(config).save_pretrained(folder)
        exact = XLMRobertaForMaskedLM.from_pretrained(folder, dtype=torch.float64, device=device)
        for attention in ("eager", "sdpa"):
            ours = XLMRobertaForMaskedLM.from_pretrained(folder, attention=attention, dtype=dtype, device=device)
            theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(
                folder, attn_implementation=attention, dtype=dtype
            )
            theirs = theirs.to(device).eval()
            for lengths in ([16], [128], [12, 64, 33, 20, 50, 64, 8, 41]):
                for row in measure(ours, theirs, exact, lengths, arguments.runs):
                    rows.append({"attention": attention, **row})
                    shape = f"{len(lengths)} x {max(lengths):3}"
                    print(
                        f"{attention:5}  {row['what']:17}  {shape}  ours {row['ms']:8.1f} ms  "
                        f"transformers {row['transformers_ms']:8.1f} ms  {row['times_faster']:.2f} times faster",
                        flush=True,
                    )
    if arguments.output:
        report = {
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor(),
            "dtype": arguments.dtype,
            "size": arguments.size,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "runs": arguments.runs,
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
