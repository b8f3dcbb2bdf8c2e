"""Fine-tuning: a checkpoint and labelled rows in, a checkpoint for a task out.

`finetune` prepares and writes, `_train` is the loop, `train_step` is one step. A run that was killed can be resumed,
and ends with the same weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

import xlmr_core.training.distributed as distributed
from xlmr_core.checkpoint.sentence_transformers import write_sentence_config
from xlmr_core.checkpoint.writing import write_safetensors
from xlmr_core.devices import check_device
from xlmr_core.hub_options import HubOptions
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tasks.embed import POOLINGS
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.batches import Order
from xlmr_core.training.examples import Encoder
from xlmr_core.training.lock import locked
from xlmr_core.training.metrics import import_scikit_learn
from xlmr_core.training.objective import Choices, HeldOut, Objective
from xlmr_core.training.objectives import objective_of
from xlmr_core.training.optimization import LARGEST_SEED, learning_rate_at, parameter_groups, seed_step, update
from xlmr_core.training.preparation import (
    ClassWeights,
    encoded,
    freeze,
    held_out_of,
    load_model,
    weights_of_classes,
)
from xlmr_core.training.records import Source, identity_of, records_in
from xlmr_core.training.report import Evaluation, History, evaluate
from xlmr_core.training.run_folder import CHECKPOINT, EVALUATION, STATE, RunFolder, write_json
from xlmr_core.training.state import written_or_explained

HISTORY, BEST = "history.jsonl", "best.safetensors"
OF_EMBEDDINGS = ("modules.json", "sentence_bert_config.json")
AFTER_A_STEP = (*CHECKPOINT, "sentencepiece.bpe.model", HISTORY, BEST, *OF_EMBEDDINGS)
MOST_EPOCHS = 10_000  # the batches of all epochs are counted before the first step
ANSWER_TOKENS = 384  # longest window of a context, as in Devlin et al. 2019


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of a run. The defaults are usual for checkpoints of base size."""

    task: Literal["classify", "tag", "answer", "embed", "rerank"]
    problem_type: str = "single_label_classification"  # of classify; or multi_label_classification, regression
    epochs: int = 3
    batch_tokens: int = 2048  # most tokens in a batch; a longer example is a batch on its own
    batches_per_step: int = 1  # batches whose gradients are added up before the weights change
    learning_rate: float = 5e-5  # the highest, of the head
    warmup_share: float = 0.1  # of the steps
    layer_decay: float = 1.0  # the learning rate of a layer is that of the one above it times this number
    weight_decay: float = 0.01  # of matrices; vectors have none
    max_norm: float = 1.0  # largest norm of the gradients of a step
    dropout: float | None = None  # None: that of the checkpoint
    freeze: int | None = None  # the embeddings and so many of the first layers are not trained
    max_tokens: int | None = None  # longest sequence; None: what the model takes, and 384 in answering
    truncation: bool = False  # whether longer texts are cut; otherwise they are errors
    overlap: int | None = None  # tokens that two windows of a context share, in answering; None: 128, or half a window
    class_weights: ClassWeights = None  # by class, or "balanced"
    temperature: float = 0.05  # of the contrastive loss, in embedding
    pooling: str = "mean"  # in embedding
    normalize: bool = True  # whether the written model makes vectors of length 1, in embedding
    evaluate_every: int | None = None  # steps; None: after each epoch
    metric: str | None = None  # the score whose best weights are kept; None: the usual one of the task
    patience: int | None = None  # the run ends after so many evaluations without a better score
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1

    def __post_init__(self) -> None:
        objective_of(self.task, self.problem_type)
        at_least = {"epochs": 1, "batch_tokens": 1, "batches_per_step": 1, "freeze": 0, "max_tokens": 8, "overlap": 0}
        at_least |= {"evaluate_every": 1, "patience": 1, "seed": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        for name, most in (("epochs", MOST_EPOCHS), ("seed", LARGEST_SEED)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")
        for name in ("warmup_share", "layer_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        for name in ("learning_rate", "max_norm", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie between 0 and 1, not {self.dropout}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling {self.pooling!r} is not one of {', '.join(POOLINGS)}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is neither 'float32' nor 'bfloat16'")


def finetune(
    train: Source,
    output: Path,
    settings: FinetuneSettings,
    *,
    held_out: Source | None = None,
    model: str | PathLike[str] = "xlmr-tiny",
    fields: Mapping[str, str] | None = None,
    device: str | None = None,
    save_every: int = 500,
    save_dtype: torch.dtype = torch.float32,
    **hub: Unpack[HubOptions],
) -> Evaluation | None:
    """Trains a model for a task on labelled rows, and writes a checkpoint to a folder.

    The checkpoint has the key layout `hf`, with the names of the classes; one for embedding is a sentence-transformers
    folder, too. With held-out rows, its weights are those of the best evaluation. If a run was killed, a call with the
    same arguments continues it from the last saved step and ends with the same weights, bit for bit on the same
    machine. Only one run at a time can use a folder. Under torchrun, the processes share out the batches of each step.

    Args:
        train: The labelled rows: a csv, tsv or jsonl file, a folder that `save_to_disk` of `datasets` wrote, or an
            iterable of mappings that can be read more than once. docs/finetune.md lists the fields of each task.
        output: The folder to write. It is made if it does not exist, and must not hold the files of another model.
        settings: The settings of the run.
        held_out: Rows to evaluate on, with the same fields.
        model: The checkpoint to begin with: a hub id, a folder, or "xlmr-tiny".
        fields: The name in the rows for each field that has another name there.
        device: The device to train on. None: a GPU if there is one.
        save_every: The number of steps between two saved states. It is saved after each evaluation, too.
        save_dtype: The dtype of the weights file. The model is evaluated with the weights in this dtype.
        hub: As for `XLMRobertaModel.from_pretrained`.

    Returns:
        The scores of the written model on the held-out rows, which are also written to evaluation.json; None without
        held-out rows, and in the processes of torchrun but the first.

    Raises:
        ValueError: A row does not have what the task needs; `output` holds files of another model or run, or a damaged
            state; another process uses it; the device does not exist; scikit-learn is missing for the evaluation.
        FloatingPointError: The loss or a weight became NaN or infinite. What was saved before stays.
        OSError: A file cannot be read or written.
    """
    chosen = check_device(distributed.own_device(device))
    if settings.batches_per_step < distributed.world_size():
        raise ValueError(
            f"batches_per_step must be at least {distributed.world_size()}, the number of processes, not "
            f"{settings.batches_per_step}: each takes some of the batches"
        )
    if held_out is not None:
        import_scikit_learn()  # raises now what would else be raised after an epoch
    elif settings.patience is not None or settings.metric is not None:
        raise ValueError("patience and metric need an evaluation: give held-out rows")
    sources = [train] if held_out is None else [train, held_out]
    run = {
        "settings": {**asdict(settings), "model": str(model), "fields": dict(fields or {})},
        "corpus": [identity_of(source, fields) for source in sources],
    }
    folder = RunFolder(output, run, after=AFTER_A_STEP)
    folder.check()
    with distributed.joined(chosen), distributed.in_first(locked(output)):
        network, objective = _prepare(train, settings, model, fields, hub)
        examples = encoded(objective, records_in(train, fields))
        order = Order(
            examples,
            batch_tokens=settings.batch_tokens,
            batches_per_step=settings.batches_per_step,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        rows = None
        if held_out is not None:
            rows = held_out_of(objective, records_in(held_out, fields), settings.batch_tokens)
        with distributed.first_before_others():
            if not folder.is_begun():
                folder.begin()
        network.to(chosen)
        _train(network, objective, order, rows, settings, output, save_every)
        if distributed.rank() > 0:
            return None
        return _write(folder, network, objective, rows, settings, save_dtype)


def _prepare(
    train: Source,
    settings: FinetuneSettings,
    source: str | PathLike[str],
    fields: Mapping[str, str] | None,
    hub: HubOptions,
) -> tuple[PretrainedModel, Objective]:
    """The model to train, and the task that knows its classes and its tokenizer."""
    kind = objective_of(settings.task, settings.problem_type)
    counts = kind.class_counts(records_in(train, fields))
    torch.manual_seed(settings.seed)  # of the weights of a new head
    model = load_model(kind, source, list(counts), dropout=settings.dropout, **hub)
    freeze(model, settings.freeze)
    labels = model.config.labels if counts else ()
    usual = ANSWER_TOKENS if settings.task == "answer" else model.config.max_tokens
    max_tokens = min(settings.max_tokens or usual, model.config.max_tokens)
    encoder = Encoder(
        XLMRobertaTokenizer.from_pretrained(source, **hub),
        max_tokens=max_tokens,
        truncation=settings.truncation,
        labels={label: number for number, label in enumerate(labels)},
        overlap=min(128, max_tokens // 2) if settings.overlap is None else settings.overlap,
    )
    weights = weights_of_classes(settings.class_weights, counts, labels)
    objective = kind(encoder, Choices(weights, settings.temperature, settings.pooling))
    if settings.metric not in (None, "loss", *objective.score_names):
        names = ", ".join(objective.score_names)
        raise ValueError(f"metric {settings.metric!r} is not a score of this task: expected one of loss, {names}")
    return model, objective


def _train(
    model: PretrainedModel,
    objective: Objective,
    order: Order,
    held_out: HeldOut | None,
    settings: FinetuneSettings,
    output: Path,
    save_every: int,
) -> None:
    """The loop: steps, evaluations and saved states, from the last saved state to the end of the run."""
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay, settings.layer_decay))
    state_file = output / STATE
    step = distributed.restore(state_file, model, optimizer, order.steps)
    network = distributed.parallel(model, next(model.parameters()).device)
    history = History(output / HISTORY, settings.metric or objective.score_names[0], step)
    silent = distributed.rank() > 0
    with tqdm(total=order.steps, initial=step, unit="step", smoothing=0.05, disable=silent) as progress:
        while step < order.steps and not history.is_over(settings.patience):
            loss, tokens = train_step(network, optimizer, objective, order, settings, step)
            step += 1
            is_due = held_out is not None and _is_due(step, order, settings.evaluate_every)
            if held_out is not None and is_due:
                scores = evaluate(objective, model, held_out).scores
                if history.add(step, scores) and distributed.rank() == 0:
                    _write_weights(model, output / BEST)
            if is_due or step % save_every == 0 or step == order.steps:
                distributed.save(state_file, model, optimizer, step)
            progress.update()
            rate = (progress.format_dict["rate"] or 0) * tokens
            progress.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    order: Order,
    settings: FinetuneSettings,
    step: int,
) -> tuple[float, int]:
    """Takes one step: the gradients of its batches are added up, then the weights are updated.

    All random numbers of a step come from (seed, step), so that a resumed run draws the same.

    Args:
        model: The model, in train mode.
        optimizer: The optimizer over the groups of `parameter_groups`. Its learning rates are set here.
        objective: The task.
        order: The batches.
        settings: The settings of the run.
        step: The number of the step, from 0.

    Returns:
        The mean loss over what is predicted, and the number of tokens.

    Raises:
        FloatingPointError: The loss is NaN or infinite. The weights were not changed.
    """
    seed_step(settings.seed, step)
    device = next(model.parameters()).device
    batches = [order.examples.batch(indices).to(device) for indices in order.at(step)]
    total = sum(objective.weight(batch) for batch in batches) or 1.0  # of batches in which nothing is predicted

    def losses() -> Iterator[Tensor]:
        for batch, factor in distributed.own_batches(batches):
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                outputs = objective.outputs(model, batch)
            yield objective.loss(outputs, batch) * (factor / total)

    warmup = int(settings.warmup_share * order.steps)
    rate = learning_rate_at(step, highest=settings.learning_rate, steps=order.steps, warmup=warmup)
    loss = update(model, optimizer, losses(), step, learning_rate=rate, max_norm=settings.max_norm)
    return loss, sum(len(batch.input_ids) for batch in batches)


def _is_due(step: int, order: Order, every: int | None) -> bool:
    """Whether the model is evaluated after so many steps; at the end it always is."""
    if step == order.steps:
        return True
    return step in order.epoch_ends if every is None else step % every == 0


def _write(
    folder: RunFolder,
    model: PretrainedModel,
    objective: Objective,
    held_out: HeldOut | None,
    settings: FinetuneSettings,
    dtype: torch.dtype,
) -> Evaluation | None:
    """Writes the checkpoint, and evaluates what was written."""
    device = next(model.parameters()).device
    if held_out is not None:
        _read_weights(model, folder.path / BEST)
    folder.write_checkpoint(model, objective.encoder.tokenizer, dtype)
    if settings.task == "embed":
        write_sentence_config(
            folder.path,
            settings.pooling,
            normalize=settings.normalize,
            max_tokens=objective.encoder.max_tokens,
            width=model.config.hidden_size,
        )
    if held_out is None:
        return None
    written = objective.model_class.from_pretrained(folder.path, attention="sdpa", device=device)
    evaluation = evaluate(objective, written, held_out)
    write_json(folder.path / EVALUATION, asdict(evaluation))
    return evaluation


def _write_weights(model: nn.Module, path: Path) -> None:
    with written_or_explained(path) as temporary:
        write_safetensors(model.state_dict(), temporary)


def _read_weights(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"{path} does not hold the best weights of this run ({cause}): remove {path.parent} and begin again"
        ) from error
