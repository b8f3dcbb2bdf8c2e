"""Training in several processes, as torchrun starts them. Without torchrun, the functions here change nothing.

Every process draws the whole batch and works on its own rows, or on its own batches of a step. Its loss is divided by
what all processes predict, and the gradients are added up, so a step is that of one process but for the order in which
numbers are added. Dropout is drawn by each process itself. Only the first process writes files and messages.
"""

import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from xlmr_core.pretrained import PretrainedModel
from xlmr_core.training.masking import MaskedBatch
from xlmr_core.training.state import check_finite, restore_state, save_state

LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun sets it
PATIENCE = timedelta(days=1)  # until a process that does not come is an error; torchrun sees at once that one has died
SEEDS = 2**53  # more than the seeds of all steps: each process has its own from there on
METADATA = ".metadata"  # the file that torch writes last

Model = TypeVar("Model", bound=PretrainedModel)
Batch = TypeVar("Batch")


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if LAUNCHED in os.environ else 0


def world_size() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"]) if LAUNCHED in os.environ else 1


def own_device(device: str | None) -> str:
    """The device of this process: of several GPUs its own.

    Args:
        device: What was asked for. None: a GPU if there is one.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}" if chosen == "cuda" and world_size() > 1 else chosen


@contextmanager
def joined(device: torch.device) -> Generator[None, None, None]:
    """Connects the processes while the context is open.

    Args:
        device: The device of this process.
    """
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def in_first(context: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """The context in the first process, and one that does nothing in the others."""
    return context if rank() == 0 else nullcontext()


@contextmanager
def first_before_others() -> Generator[None, None, None]:
    """The first process runs the block before the others, which then find what it has written."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def seed_process(seed: int) -> None:
    """Seeds the random numbers that each process draws for itself: dropout.

    Args:
        seed: That of the step. The first process has it as it is.
    """
    torch.manual_seed(seed + rank() * SEEDS)


def own_rows(batch: MaskedBatch) -> MaskedBatch:
    """The rows of this process.

    Args:
        batch: The rows of all processes.
    """
    if world_size() == 1:
        return batch
    own = slice(rank(), None, world_size())
    positions = batch.positions[own]
    labels = torch.zeros_like(batch.input_ids).masked_scatter(batch.positions, batch.labels)
    return MaskedBatch(batch.input_ids[own], positions, labels[own][positions])


def own_batches(batches: Sequence[Batch]) -> list[tuple[Batch, float]]:
    """The batches of this process in a step of several, and the factor of the loss of each.

    Every process has as many, because each backward pass waits for the others: where they do not come out even, some
    have the first batch once more with the factor 0.

    Args:
        batches: Those of all processes.
    """
    count = world_size()
    own = [(batch, float(count)) for batch in batches[rank() :: count]]
    missing = -(-len(batches) // count) - len(own)
    return own + [(batches[0], 0.0)] * missing


def mean(value: float) -> float:
    """The mean of a number over all processes.

    Args:
        value: That of this process.
    """
    if world_size() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / world_size()


def parallel(model: PretrainedModel, device: torch.device, *, shard: bool = False) -> nn.Module:
    """Brings a model to the device, and adds up its gradients over the processes.

    Args:
        model: The model, the same in every process.
        device: The device of this process.
        shard: Whether each process keeps only its part of every weight, gradient and moment, and activations of the
            layers are computed a second time for the gradients (FSDP2). It is slower, and needs less memory.

    Returns:
        What takes the place of the model in a step. After its backward pass, the gradients are the mean over the
        processes.

    Raises:
        ValueError: `shard` without several processes.
    """
    if not shard:
        model.to(device)
        return DistributedDataParallel(model) if world_size() > 1 else model
    if world_size() == 1:
        raise ValueError("there is one process, and nothing to shard: start several by torchrun --nproc-per-node")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    layers: Any = model.get_submodule("encoder.layers")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(model: Model, make: Callable[[], Model]) -> Model:
    """The model with all of its weights, for the first process.

    Args:
        model: The model.
        make: Makes one of the same sizes, for the weights of a sharded model.
    """
    if not is_sharded(model):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank() > 0:
        return model
    gathered = make()
    gathered.load_state_dict(weights)
    return gathered


def is_sharded(model: nn.Module) -> bool:
    """Whether `parallel` has sharded the model."""
    if world_size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shards_of(name: str) -> str:
    """The name of the folder for the shards of a state, from that of its file."""
    return Path(name).stem


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the state of a run: the first process one file, or every process its shards to a folder.

    Args:
        path: The file. The folder of a sharded model has its name without the ending, and a folder for the step.
        model: The model.
        optimizer: Its optimizer.
        step: The number of steps that were taken.

    Raises:
        FloatingPointError: A weight is NaN or infinite. Nothing was written.
        OSError: A file cannot be written.
    """
    if is_sharded(model):
        _save_shards(path.with_name(shards_of(path.name)), model, optimizer, step)
    elif rank() == 0:
        save_state(path, model, optimizer, step)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
    """Reads the last state that `save` wrote, if there is one.

    Args:
        path: The file, as for `save`.
        model: The model. Its weights are replaced.
        optimizer: Its optimizer. Its moments are replaced.
        steps: The number of steps of the whole run.

    Returns:
        The number of steps that were taken; 0 if no state was saved.

    Raises:
        ValueError: What is there is not a state of this run.
    """
    if is_sharded(model):
        return _restore_shards(path.with_name(shards_of(path.name)), model, optimizer, steps)
    return restore_state(path, model, optimizer, steps) if path.exists() else 0


def _save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the state of a step to a folder of its own, and removes that of the step before."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    state = _state_of(model, optimizer, step)
    check_finite({name: tensor.to_local() for name, tensor in state["model"].items()}, f"after {step} steps")
    earlier = _saved_steps(folder)
    save_shards(state, checkpoint_id=folder / f"{step:08}")
    if rank() == 0:
        for path in earlier:
            shutil.rmtree(path)


def _restore_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> int:
    from torch.distributed.checkpoint.state_dict import set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    saved = _saved_steps(folder)
    if not saved:
        return 0
    state = _state_of(model, optimizer, 0)
    try:
        load_shards(state, checkpoint_id=saved[-1])
    except Exception as error:  # torch raises many kinds for a damaged file
        cause = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{saved[-1]} is not a state that this run can continue from: {cause}. Replace it with a copy, or remove "
            "it to begin at step 0"
        ) from error
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return min(state["step"], steps)


def _state_of(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "step": step}


def _saved_steps(folder: Path) -> list[Path]:
    """The folders of the steps that were saved to the end, the last one last."""
    return sorted(path for path in folder.glob("*") if (path / METADATA).exists())
