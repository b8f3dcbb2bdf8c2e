"""Recording of traces (trace.py): what a model computes for an input, and where the numbers come from."""

import copy
import hashlib
import platform
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from xlmr_core.checkpoint import inspect_checkpoint
from xlmr_core.checkpoint.files import local_path
from xlmr_core.devices import check_device
from xlmr_core.formatting import dtype_name
from xlmr_core.hub_options import HubOptions
from xlmr_core.kernels import AttentionKind
from xlmr_core.model import XLMRobertaModel
from xlmr_core.parity.adapters import is_fused
from xlmr_core.parity.formats import (
    INPUTS,
    MOST_STEPS,
    TraceError,
    shortened,
)
from xlmr_core.parity.tap_values import LOGITS, LOGSUMEXP, TOP, TOP_IDS, in_reading_order, logsumexp
from xlmr_core.parity.trace import Provenance, Trace, recordable
from xlmr_core.parity.variants import run_taps
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tokenizer import XLMRobertaTokenizer

TOP_K = 32


@dataclass(frozen=True)
class Checkpoint:
    """A model in float32 on the CPU, and what the provenance says about it."""

    model: PretrainedModel
    name: str
    revision: str | None

    @classmethod
    def load(
        cls, source: str | PathLike[str], *, attention: AttentionKind = "eager", **hub: Unpack[HubOptions]
    ) -> "Checkpoint":
        """The model in `source`, with the head that it has, or the encoder of a checkpoint without one.

        hub: how to ask the hub, as for `from_pretrained`.
        """
        found = inspect_checkpoint(source, **hub).model
        model = recordable().get(found, XLMRobertaModel)
        path = local_path(source)
        name = str(source) if path is None or not Path(source).exists() else path.resolve().name
        return cls(model.from_pretrained(source, attention=attention, **hub), name, hub.get("revision"))


def record(
    source: str | PathLike[str],
    texts: Sequence[str],
    *,
    pairs: Sequence[str] = (),
    taps: Sequence[str] = ("**",),
    top_k: int = TOP_K,
    grad: bool = False,
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: AttentionKind = "eager",
    **hub: Unpack[HubOptions],
) -> Trace:
    """Records a trace of the checkpoint in `source` for `texts`.

    Args:
        source: A hub id, a folder, a weights file, or "xlmr-tiny".
        texts: What to run on. More than one make a padded batch.
        pairs: The second text of each, as rerankers take them.
        taps: Patterns, as for `model.capture`.
        top_k: Vocabulary logits that are kept of each token; 0 keeps all of them.
        grad: Also the gradients of every parameter; of a masked language model only.
        steps: Also the losses of that many training steps; of a masked language model only.
        dtype: The precision of the run.
        device: Where to run.
        attention: The attention kernel.
        hub: How to ask the hub, as for `from_pretrained`.

    Returns:
        The inputs, the tensor at each tap, and where they come from.

    Raises:
        ValueError: A pattern matches nothing, or there is no text.
        CheckpointError: The checkpoint cannot be loaded.
    """
    if not texts:
        raise ValueError("there is no text to record")
    checkpoint = Checkpoint.load(source, attention=attention, **hub)
    tokenizer = XLMRobertaTokenizer.from_pretrained(source, **hub)
    batch = tokenizer(list(texts), list(pairs) or None)
    inputs = {name: batch[name] for name in INPUTS}
    return record_model(
        checkpoint,
        inputs,
        texts=texts,
        pairs=pairs,
        taps=taps,
        top_k=top_k,
        grad=grad,
        steps=steps,
        dtype=dtype,
        device=device,
    )


def record_model(
    checkpoint: Checkpoint,
    inputs: Mapping[str, Tensor],
    *,
    texts: Sequence[str] = (),
    pairs: Sequence[str] = (),
    taps: Sequence[str] = ("**",),
    top_k: int = TOP_K,
    grad: bool = False,
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    weights_sha256: str | None = None,
) -> Trace:
    """Records a trace of a model that is loaded, for ids; other arguments and errors as those of `record`.

    Args:
        checkpoint: The model and what is known of where it comes from.
        inputs: input_ids and attention_mask, int64 (B, S).
        weights_sha256: See `hash_of_weights`; of a large model it takes seconds. By default it is computed.
    """
    model = checkpoint.model
    if not taps and not grad and not steps:
        raise ValueError("nothing is asked for: name taps, gradients or steps")
    if steps > MOST_STEPS:
        raise ValueError(f"{steps} steps of training are asked for; at most {MOST_STEPS} are recorded")
    if "" in taps:
        raise ValueError("a pattern of taps is empty; '**' is every tap")
    sha256 = weights_sha256 or hash_of_weights(model)
    with one_thread():
        found = run_taps(_moved(model, device, dtype), inputs, taps, grad=grad, steps=steps)
    found = {tap: tensor.detach().cpu() for tap, tensor in found.items()}
    logits = found.get(LOGITS)
    if logits is not None and 0 < top_k < logits.shape[-1]:
        values, ids = logits.topk(top_k, dim=-1)
        del found[LOGITS]
        found |= {TOP_IDS: ids, TOP: values, LOGSUMEXP: logsumexp(logits)}
    provenance = Provenance(
        checkpoint=checkpoint.name,
        revision=checkpoint.revision,
        model=type(model).__name__,
        weights_sha256=sha256,
        config=model.config.to_dict(),
        texts=tuple(texts),
        pairs=tuple(pairs),
        dtype=dtype_name(dtype),
        attention="sdpa" if is_fused(model) else "eager",
        device=device,
        cpu=_cpu(),
        threads=1,
        steps=steps,
        logits_sha256=None if logits is None else hashlib.sha256(_bytes(logits)).hexdigest(),
        versions={"torch": torch.__version__},
    )
    return Trace(dict(inputs), {tap: found[tap] for tap in in_reading_order(found)}, provenance)


def _moved(model: PretrainedModel, device: str, dtype: torch.dtype) -> PretrainedModel:
    """The model, or a copy of it there and so: `to` would change the one that was given."""
    check_device(device)
    there = all(p.dtype == dtype and p.device == torch.device(device) for p in model.parameters())
    return model if there else copy.deepcopy(model).to(device, dtype)


def rerun(trace: Trace, checkpoint: Checkpoint, *, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The taps of `trace` as the model of `checkpoint` computes them, logits whole.

    Raises TraceError if the trace was recorded from other weights.
    """
    check_same_weights(trace, checkpoint)
    with one_thread():
        model = _moved(checkpoint.model, device, dtype)
        return run_taps(model, trace.inputs, trace.taps, grad=trace.has_gradients, steps=trace.provenance.steps)


def check_same_weights(trace: Trace, checkpoint: Checkpoint) -> None:
    """Raises TraceError if the trace was recorded from other weights, and says how the two configs differ."""
    ours, theirs = trace.provenance, checkpoint.model.config.to_dict()
    different = [
        f"{key} {shortened(value)} and {shortened(theirs.get(key))}"
        for key, value in ours.config.items()
        if theirs.get(key) != value
    ]
    if different:
        raise TraceError(f"the trace is of another checkpoint, {ours.checkpoint}: {', '.join(different)}")
    if type(checkpoint.model).__name__ != ours.model:
        raise TraceError(f"the trace is of a {ours.model}, the checkpoint a {type(checkpoint.model).__name__}")
    sha256 = hash_of_weights(checkpoint.model)
    if sha256 != ours.weights_sha256:
        raise TraceError(
            f"the trace is of another checkpoint, {ours.checkpoint}, with other weights: their sha256 begins with "
            f"{ours.weights_sha256[:12]}, that of {checkpoint.name} with {sha256[:12]}"
        )


def hash_of_weights(model: nn.Module) -> str:
    """sha256 of every parameter in float32, by sorted name: one for all layouts and formats of the same weights."""
    parameters = dict(model.named_parameters())
    digest = hashlib.sha256()
    for name in sorted(parameters):
        digest.update(f"{name} {tuple(parameters[name].shape)}\n".encode())
        digest.update(_bytes(parameters[name].detach().float()))
    return digest.hexdigest()


def hash_of_inputs(inputs: Mapping[str, Tensor]) -> str:
    """sha256 of ids and mask with their shape."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update(f"{name} {tuple(inputs[name].shape)}\n".encode())
        digest.update(_bytes(inputs[name].long()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """The numbers as they lie in memory; as bytes, because numpy has no bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@contextmanager
def one_thread() -> Generator[None, None, None]:
    """With more threads, sums are split in as many parts, and their last bits depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _cpu() -> str:
    """The instructions that torch uses here, and the processor's name where the system shows it."""
    names = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    return ", ".join(names)
