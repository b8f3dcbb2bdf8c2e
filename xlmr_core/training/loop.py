"""Masked-LM pre-training: the loop, readable in one sitting, and resumable after a kill with the same result."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.inputs import check_device
from xlmr_core.tokenizer import XLMRobertaTokenizer
from xlmr_core.training.corpus import Corpus, sentences_in
from xlmr_core.training.evaluation import Accuracy, evaluate
from xlmr_core.training.masking import mask_tokens
from xlmr_core.training.vocabulary import train_vocabulary

SHORTEST = 3  # tokens: <s>, one to learn from, </s>
LARGEST_SEED = 2**32 - 1
RECORD, STATE, VOCABULARY = "run.json", "training_state.pt", "sentencepiece.bpe.model"


@dataclass(frozen=True)
class PretrainSettings:
    """Everything a run depends on beside its text. Defaults make a small model in about an hour of two CPU cores."""

    vocabulary_size: int = 12_000  # SentencePiece pieces; the model's vocabulary is two longer
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 1024
    dropout: float = 0.1
    max_tokens: int = 128  # longest sequence, <s> and </s> included
    short_tokens: int = 32  # longest sequence of the first steps
    short_share: float = 0.8  # of all steps
    batch_size: int = 16  # sequences of max_tokens a step, or as many more as are shorter
    steps: int = 10_000
    warmup_steps: int | None = None  # None: a twentieth of the steps, and at most 500
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    mask_probability: float = 0.15
    language_exponent: float = 0.3
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "hidden_size", "layers", "heads", "intermediate_size", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size must be a multiple of heads ({self.heads}), not {self.hidden_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie between 0 and 1, not {self.dropout}")
        if not 0 <= self.warmup <= self.steps:
            raise ValueError(f"warmup_steps must lie between 0 and steps ({self.steps}), not {self.warmup}")
        if not SHORTEST <= self.short_tokens <= self.max_tokens:
            raise ValueError(
                f"short_tokens must lie between {SHORTEST} and max_tokens ({self.max_tokens}), not {self.short_tokens}"
            )
        if not 0 <= self.short_share <= 1:
            raise ValueError(f"short_share must lie between 0 and 1, not {self.short_share}")
        for name in ("learning_rate", "weight_decay", "language_exponent"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} must be finite and not negative, not {getattr(self, name)}")
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability must lie between 0 and 1, not {self.mask_probability}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is neither 'float32' nor 'bfloat16'")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed must lie between 0 and {LARGEST_SEED}, not {self.seed}")

    @property
    def warmup(self) -> int:
        """How many steps the learning rate rises for."""
        return min(self.steps // 20, 500) if self.warmup_steps is None else self.warmup_steps

    def config(self, vocab_size: int) -> XLMRobertaConfig:
        """The config of the model to train."""
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

    def batch_shape_at(self, step: int) -> tuple[int, int]:
        """How many sequences of at most how many tokens: short ones first, which teach the same for less.

        Attention learns to look at a neighbour sooner where there are few tokens to choose from (Devlin et al. 2019,
        appendix A.2, train nine tenths of the steps so).
        """
        if step < self.short_share * self.steps:
            return self.batch_size * self.max_tokens // self.short_tokens, self.short_tokens
        return self.batch_size, self.max_tokens

    def learning_rate_at(self, step: int) -> float:
        """Linear from 0 over the warm-up, then linear to 0 at the last step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self.learning_rate * (self.steps - step) / max(1, self.steps - self.warmup)


def pretrain(
    corpus_files: Sequence[Path],
    output: Path,
    settings: PretrainSettings,
    *,
    held_out_files: Sequence[Path] = (),
    device: str | None = None,
    save_every: int = 500,
    save_dtype: torch.dtype = torch.float32,
) -> dict[str, Accuracy]:
    """Trains a vocabulary and a masked language model, and writes them to `output` in the published layout.

    Each corpus file is one language, one sentence a line; a held-out file belongs to the corpus file of its name.
    Killed and called again with the same arguments, it goes on from the last saved step and ends with the same
    weights, bit for bit on the same machine. The weights are written as `save_dtype`, and what was written is what is
    evaluated. Returns the held-out accuracy by language, also in evaluation.json.
    Raises ValueError where `output` holds a run with other settings, for a device that is not there, for files
    without a sentence or not in UTF-8, and for too little text; nothing is written before the vocabulary is made.
    """
    chosen = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = {
        "settings": {**asdict(settings), "warmup_steps": settings.warmup},
        "corpus": [path.name for path in corpus_files],
    }
    for path in (*corpus_files, *held_out_files):
        sentences_in(path)  # what is wrong with a file is told before hours of work
    vocabulary = output / VOCABULARY
    if _is_new(output, run):
        pieces = train_vocabulary(corpus_files, settings.vocabulary_size)
        output.mkdir(parents=True, exist_ok=True)
        vocabulary.unlink(missing_ok=True)
        _write_json(output / RECORD, run)
        _write(vocabulary, pieces)
    tokenizer = XLMRobertaTokenizer(vocabulary, max_tokens=settings.max_tokens)
    corpus = Corpus(corpus_files, tokenizer, exponent=settings.language_exponent)

    torch.manual_seed(settings.seed)
    model = XLMRobertaForMaskedLM(settings.config(tokenizer.vocab_size))
    model.initialize()
    model.to(chosen).train()
    optimizer = torch.optim.AdamW(decay_groups(model, settings.weight_decay), betas=(0.9, 0.98), eps=1e-6)

    state_file = output / STATE
    first_step = _restore(state_file, model, optimizer) if state_file.exists() else 0
    with tqdm(total=settings.steps, initial=first_step, unit="step", smoothing=0.05) as progress:
        for step in range(first_step, settings.steps):
            if step % save_every == 0 and step > first_step:
                _save(state_file, model, optimizer, step)
            loss, tokens = train_step(model, optimizer, corpus, settings, step)
            progress.update()
            rate = (progress.format_dict["rate"] or 0) * tokens
            progress.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s", refresh=False)
    _save(state_file, model, optimizer, settings.steps)

    model.to(save_dtype).save_pretrained(output)
    tokenizer.save_pretrained(output)
    written = XLMRobertaForMaskedLM.from_pretrained(output, device=chosen)
    results = evaluate(written, tokenizer, corpus, held_out_files)
    _write_json(output / "evaluation.json", {name: asdict(accuracy) for name, accuracy in results.items()})
    return results


def train_step(
    model: XLMRobertaForMaskedLM,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    settings: PretrainSettings,
    step: int,
) -> tuple[float, int]:
    """One batch, one update. Returns the mean loss over the masked positions, in nats, and the batch's token count.

    All that is random in a step, dropout too, comes from (seed, step): no state needs to be carried from the last one.
    """
    seed = settings.seed * 1_000_003 + step
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    input_ids = corpus.batch(generator, *settings.batch_shape_at(step))
    batch = mask_tokens(input_ids, corpus.tokenizer, generator, probability=settings.mask_probability)

    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate_at(step)
    device = model.lm_head.dense.weight.device
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        output = model(batch.input_ids.to(device), positions=batch.positions.to(device))
    loss = F.cross_entropy(output.logits.float(), batch.labels.to(device))
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss at step {step} is {loss.item()}: try a lower learning rate")
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), input_ids.numel()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices alone: shrinking a bias or a norm's scale regularises nothing."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def _is_new(output: Path, run: dict[str, Any]) -> bool:
    """Whether the run has yet to begin in `output`. Raises ValueError if there is a model, or another run's steps."""
    record = output / RECORD
    begun = (output / STATE).exists() or (output / "model.safetensors").exists()
    if not record.exists():
        if begun or (output / VOCABULARY).exists():
            raise ValueError(f"{output} already holds a model or a vocabulary: choose an empty folder")
        return True
    earlier = _read_record(record)
    if earlier == run:
        return not (output / VOCABULARY).exists()
    if begun:
        differing = [name for name in run["settings"] if run["settings"][name] != earlier["settings"].get(name)]
        raise ValueError(
            f"{output} holds a run with other {', '.join(differing) or 'corpus files'}: "
            "give the same settings to go on with it, or choose an empty folder"
        )
    return True  # no step of the other run was saved: nothing is lost


def _read_record(record: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        dict(run["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{record} is not the record of a run: choose an empty folder") from error
    return run


def _save(state_file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = state_file.with_suffix(".tmp")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
    os.replace(temporary, state_file)


def _restore(state_file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    _write(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
