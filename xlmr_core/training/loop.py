"""Masked-LM pre-training. A run that was killed can be resumed, and ends with the same weights."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import xlmr_core.training.distributed as distributed
from xlmr_core.checkpoint.loading import find_tokenizer
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.devices import check_device
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.corpus import Corpus, sentences_in
from xlmr_core.training.evaluation import Accuracy, evaluate
from xlmr_core.training.lock import locked
from xlmr_core.training.masking import mask_tokens
from xlmr_core.training.optimization import LARGEST_SEED, learning_rate_at, parameter_groups, seed_step, update
from xlmr_core.training.preparation import set_dropout
from xlmr_core.training.run_folder import CHECKPOINT, EVALUATION, STATE, RunFolder, write_bytes, write_json
from xlmr_core.training.vocabulary import train_vocabulary

SHORTEST = 3  # tokens: <s>, one to predict, </s>
LARGEST_SIZE = 2**24  # of a whole number: AdamW counts its steps in float32
LARGEST_RATE = 1e30  # above this, its product with a moment of AdamW overflows float32
LARGEST_EXPONENT = 4  # a billion to this power is still finite in float32
VOCABULARY = "sentencepiece.bpe.model"
CHUNK = 2**20  # bytes of a corpus file that are hashed at a time


@dataclass(frozen=True)
class PretrainSettings:
    """The settings of a run. The defaults train a small model in about an hour on two CPU cores."""

    vocabulary_size: int = 12_000  # SentencePiece pieces; the model has two more tokens, <pad> and <mask>
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4  # attention heads
    intermediate_size: int = 1024
    dropout: float = 0.1  # of hidden states and of attention probabilities
    max_tokens: int = 128  # in a row, special tokens included
    short_tokens: int = 32  # in a row of the first steps
    short_share: float = 0.8  # share of the steps that use short rows
    batch_size: int = 16  # rows in a step; more of the short ones, with as many tokens in all
    steps: int = 10_000
    warmup_steps: int | None = None  # None: a twentieth of the steps, and at most 500
    learning_rate: float = 5e-4  # the highest, at the end of the warm-up
    weight_decay: float = 0.01  # of matrices; vectors have none
    mask_probability: float = 0.15  # share of the tokens to predict
    language_exponent: float = 0.3  # see Corpus
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "hidden_size", "layers", "heads", "intermediate_size", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > LARGEST_SIZE:
                raise ValueError(f"{name} must be at most {LARGEST_SIZE}, not {getattr(self, name)}")
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size must be a multiple of heads ({self.heads}), not {self.hidden_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie between 0 and 1, not {self.dropout}")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup_steps must lie between 0 and steps ({self.steps}), not {self.warmup}")
        if self.max_tokens > LARGEST_SIZE:
            raise ValueError(f"max_tokens must be at most {LARGEST_SIZE}, not {self.max_tokens}")
        if not SHORTEST <= self.short_tokens <= self.max_tokens:
            raise ValueError(
                f"short_tokens must lie between {SHORTEST} and max_tokens ({self.max_tokens}), not {self.short_tokens}"
            )
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"short_share must lie between 0 and 1, not {self.short_share}")
        limits = {"learning_rate": LARGEST_RATE, "weight_decay": LARGEST_RATE, "language_exponent": LARGEST_EXPONENT}
        for name, limit in limits.items():
            if not 0 <= getattr(self, name) <= limit:
                raise ValueError(f"{name} must lie between 0 and {limit:g}, not {getattr(self, name)}")
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability must lie between 0 and 1, not {self.mask_probability}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is neither 'float32' nor 'bfloat16'")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must lie between 0 and {LARGEST_SEED}, not {self.seed}")

    @property
    def warmup(self) -> int:
        """The number of steps over which the learning rate rises."""
        return min(self.steps // 20, 500) if self.warmup_steps is None else self.warmup_steps

    def config(self, vocab_size: int) -> XLMRobertaConfig:
        """Makes the config of the model to train.

        Args:
            vocab_size: The number of token ids.

        Returns:
            The config.
        """
        return XLMRobertaConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.max_tokens + 2,  # rows 0 and 1 are never used
        )

    def for_model(self, config: XLMRobertaConfig) -> "PretrainSettings":
        """These settings with the sizes of a model that exists.

        Args:
            config: The config of the model.

        Returns:
            The settings.

        Raises:
            ValueError: The model has no positions for `max_tokens`.
        """
        longest = config.max_position_embeddings - 2
        if self.max_tokens > longest:
            raise ValueError(f"max_tokens must be at most {longest}, the positions of the model, not {self.max_tokens}")
        return replace(
            self,
            vocabulary_size=config.vocab_size - 2,
            hidden_size=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
        )

    def batch_shape_at(self, step: int) -> tuple[int, int]:
        """The shape of the batch at a step: short rows first, which cost less.

        Attention also learns sooner to look at a neighbour where there are few tokens to choose from. Devlin et al.
        2019, appendix A.2, train nine tenths of the steps with short sequences.

        Args:
            step: The number of the step, from 0.

        Returns:
            The number of rows, and of tokens in one.
        """
        if step < self.short_share * self.steps:
            return self.batch_size * self.max_tokens // self.short_tokens, self.short_tokens
        return self.batch_size, self.max_tokens

    def learning_rate_at(self, step: int) -> float:
        """The learning rate at a step; see `xlmr_core.training.optimization.learning_rate_at`.

        Args:
            step: The number of the step, from 0.

        Returns:
            The learning rate.
        """
        return learning_rate_at(step, highest=self.learning_rate, steps=self.steps, warmup=self.warmup)


def pretrain(
    corpus_files: Sequence[Path],
    output: Path,
    settings: PretrainSettings,
    *,
    model: str | Path | None = None,
    held_out_files: Sequence[Path] = (),
    device: str | None = None,
    save_every: int = 500,
    save_dtype: torch.dtype = torch.float32,
    shard: bool = False,
) -> dict[str, Accuracy]:
    """Trains a vocabulary and a masked language model, and writes a checkpoint to a folder.

    The checkpoint has the key layout `hf`. If a run was killed, a call with the same arguments continues it from the
    last saved step and ends with the same weights, bit for bit on the same machine. Only one run at a time can use a
    folder. Under torchrun, the processes share out the rows of each batch.

    Args:
        corpus_files: The text, UTF-8: one language a file, one sentence a line. Each file is read more than once, so
            a pipe is an error.
        output: The folder to write. It is made if it does not exist, and must not hold the files of another model.
        settings: The settings of the run.
        model: A checkpoint to train further: its weights, its vocabulary and its sizes instead of those of `settings`.
            None: a new vocabulary and fresh weights.
        held_out_files: Text to evaluate on. Each file has the name of the corpus file of its language.
        device: The device to train on. None: a GPU if there is one.
        save_every: The number of steps between two saved states.
        save_dtype: The dtype of the weights file. The model is evaluated with the weights in this dtype.
        shard: Whether the processes of torchrun share out the weights, too: see `distributed.parallel`.

    Returns:
        The held-out results by language, which are also written to evaluation.json; none in the processes of torchrun
        but the first.

    Raises:
        ValueError: `output` holds files of another model, a run with other settings or other text, or a damaged state;
            another process uses it; the device does not exist; two files are one language, a file cannot be read, or
            there is too little text; `model` has no positions for `max_tokens`; a weight would be infinite in
            `save_dtype`; there are more processes than rows in a batch, or `shard` without torchrun.
        CheckpointError: `model` cannot be found or read, or has no masked-LM head.
        FloatingPointError: The loss or a weight became NaN or infinite. What was saved before stays.
        OSError: A file cannot be written.
    """
    chosen = check_device(distributed.own_device(device))
    if settings.batch_size < distributed.world_size():
        raise ValueError(
            f"batch_size must be at least {distributed.world_size()}, the number of processes, not "
            f"{settings.batch_size}: each takes a part of the batch"
        )
    for files in (corpus_files, held_out_files):
        _check_names(files)
        for path in files:
            sentences_in(path)  # raises now what would else be raised after hours of work
    first = None if model is None else XLMRobertaForMaskedLM.from_pretrained(model, dtype=torch.float32)
    if first:
        settings = settings.for_model(first.config)
    choices = {"warmup_steps": settings.warmup, "model": str(model) if model else None, "shard": shard}
    run = {
        "settings": {**asdict(settings), **choices},
        "corpus": [{"name": path.name, "sha256": _sha256(path)} for path in corpus_files],
    }
    folder = RunFolder(output, run, before=(VOCABULARY,), after=(*CHECKPOINT, distributed.shards_of(STATE)))
    folder.check()
    with distributed.joined(chosen), distributed.in_first(locked(output)):
        with distributed.first_before_others():
            if not folder.is_begun():
                pieces = _pieces_of(model) if model else train_vocabulary(corpus_files, settings.vocabulary_size)
                (output / VOCABULARY).unlink(missing_ok=True)
                folder.begin()
                write_bytes(output / VOCABULARY, pieces)
        return _run(folder, first, corpus_files, settings, held_out_files, chosen, save_every, save_dtype, shard)


def _run(
    folder: RunFolder,
    first: XLMRobertaForMaskedLM | None,
    corpus_files: Sequence[Path],
    settings: PretrainSettings,
    held_out_files: Sequence[Path],
    device: torch.device,
    save_every: int,
    save_dtype: torch.dtype,
    shard: bool,
) -> dict[str, Accuracy]:
    """`pretrain`, with its arguments checked, its folder locked and its vocabulary written."""
    output = folder.path
    longest = first.config.max_position_embeddings - 2 if first else settings.max_tokens
    tokenizer = XLMRobertaTokenizer(output / VOCABULARY, max_tokens=longest)
    corpus = Corpus(corpus_files, tokenizer, exponent=settings.language_exponent)

    torch.manual_seed(settings.seed)
    model = first or _fresh(settings, tokenizer.vocab_size)
    set_dropout(model, settings.dropout)
    network = distributed.parallel(model.train(), device, shard=shard)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), betas=(0.9, 0.98), eps=1e-6)

    state_file = output / STATE
    first_step = distributed.restore(state_file, model, optimizer, settings.steps)
    silent = distributed.rank() > 0
    with tqdm(total=settings.steps, initial=first_step, unit="step", smoothing=0.05, disable=silent) as progress:
        for step in range(first_step, settings.steps):
            if step % save_every == 0 and step > first_step:
                distributed.save(state_file, model, optimizer, step)
            loss, tokens = train_step(network, optimizer, corpus, settings, step)
            progress.update()
            rate = (progress.format_dict["rate"] or 0) * tokens
            progress.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
    if first_step < settings.steps:
        distributed.save(state_file, model, optimizer, settings.steps)

    model = distributed.whole(model, lambda: XLMRobertaForMaskedLM(model.config))
    if distributed.rank() > 0:
        return {}
    folder.write_checkpoint(model, tokenizer, save_dtype)
    written = XLMRobertaForMaskedLM.from_pretrained(output, device=device)
    results = evaluate(written, tokenizer, corpus, held_out_files)
    write_json(output / EVALUATION, {name: asdict(accuracy) for name, accuracy in results.items()})
    return results


def _pieces_of(source: str | Path) -> bytes:
    """The SentencePiece model of a checkpoint."""
    model_file, _ = find_tokenizer(source)
    return model_file.read_bytes()


def _fresh(settings: PretrainSettings, vocab_size: int) -> XLMRobertaForMaskedLM:
    try:
        model = XLMRobertaForMaskedLM(settings.config(vocab_size))
    except RuntimeError as error:  # torch raises it for too little memory
        raise ValueError(f"a model of these sizes cannot be made ({str(error).splitlines()[0]}): lower them") from error
    model.initialize()
    return model


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    settings: PretrainSettings,
    step: int,
) -> tuple[float, int]:
    """Takes one step: draws a batch, masks it and updates the weights.

    All random numbers of a step, dropout included, come from (seed, step), so that a resumed run draws the same.

    Args:
        model: The model in train mode, or what `distributed.parallel` made of it.
        optimizer: The optimizer over its parameters. Its learning rate is set here.
        corpus: The text.
        settings: The settings of the run.
        step: The number of the step, from 0.

    Returns:
        The mean loss over the masked positions, in nats, and the number of tokens in the batch.

    Raises:
        FloatingPointError: The loss is NaN or infinite. The weights were not changed.
    """
    generator = seed_step(settings.seed, step)
    input_ids = corpus.batch(generator, *settings.batch_shape_at(step))
    batch = mask_tokens(input_ids, corpus.tokenizer, generator, probability=settings.mask_probability)

    own = distributed.own_rows(batch)
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        output = model(own.input_ids.to(device), positions=own.positions.to(device))
    # The gradients are the mean over the processes: of this, it is the mean over what all of them predict.
    weight = distributed.world_size() / max(1, len(batch.labels))
    loss = F.cross_entropy(output.logits.float(), own.labels.to(device), reduction="sum") * weight
    rate = settings.learning_rate_at(step)
    return update(model, optimizer, [loss], step, learning_rate=rate), input_ids.numel()


def _check_names(files: Sequence[Path]) -> None:
    """Raises ValueError for a path that is not a regular file, and for two files of one language."""
    for path in files:
        if not path.is_file():
            raise ValueError(
                f"{path} is not a regular file: text is read more than once, so it cannot come from a pipe"
            )
    counts = Counter(path.stem for path in files)
    for language, count in counts.items():
        if count > 1:
            same = ", ".join(str(path) for path in files if path.stem == language)
            raise ValueError(f"{same} are one language by their name, {language!r}: join the files, or rename one")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
