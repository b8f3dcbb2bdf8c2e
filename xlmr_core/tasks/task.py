"""What all tasks share: a model with its tokenizer, loaded from one checkpoint."""

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self, Unpack

from xlmr_core.devices import check_device
from xlmr_core.hub_options import HubOptions
from xlmr_core.kernels import AttentionKind
from xlmr_core.pretrained import PretrainedModel
from xlmr_core.tasks.rows import Row
from xlmr_core.tokenizer import SPACE, Token, XLMRobertaTokenizer

SPARE_ROWS = 1024  # the 250,002 tokens of XL and XXL have a table of 250,880 rows, a multiple of this

Model = TypeVar("Model", bound=PretrainedModel)
Input = TypeVar("Input")
Output = TypeVar("Output")


class Pair(NamedTuple):
    """Two texts that the model reads together."""

    text: str
    pair: str


class Task(Generic[Model]):
    """A model and its tokenizer. Each task adds `stream` for any iterable, `batch` for a list, and a call for one.

    "</s>", "<mask>" and the like in a text are plain text here, except in `FillMask`: a text from a stranger cannot end
    itself.
    """

    model_class: ClassVar[type[PretrainedModel]]

    def __init__(self, model: Model, tokenizer: XLMRobertaTokenizer) -> None:
        if not 0 <= model.config.vocab_size - tokenizer.vocab_size < SPARE_ROWS:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model has {model.config.vocab_size}: they "
                "do not belong together. Load both from one checkpoint"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = min(tokenizer.max_tokens, model.config.max_tokens)

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        attention: AttentionKind = "sdpa",
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        **hub: Unpack[HubOptions],
    ) -> Self:
        """Loads model and tokenizer of one checkpoint.

        Args:
            source: A hub id, a folder, or "xlmr-tiny".
            attention: The attention kernel.
            dtype: The precision to run in; None keeps that of the file.
            device: Where to run.
            hub: As for `XLMRobertaModel.from_pretrained`.

        Raises:
            CheckpointError: The checkpoint cannot be read, or it lacks the head of this task.
            ValueError: The device is not there, or the vocabularies of tokenizer and model do not fit each other.
        """
        device = check_device(device)
        # At the same time: a vocabulary of 250,000 pieces takes SentencePiece half a second.
        with ThreadPoolExecutor(max_workers=1) as pool:
            tokenizer = pool.submit(XLMRobertaTokenizer.from_pretrained, source, **hub)
            model: Any = cls.model_class.from_pretrained(source, attention=attention, dtype=dtype, device=device, **hub)
            return cls(model, tokenizer.result())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _row(self, text: str, *, truncation: bool = False, specials_in_text: bool | Collection[str] = False) -> Row:
        """`<s> text </s>`."""
        return Row(text_ids(self.tokenizer, text, self.max_tokens, truncation, specials_in_text))

    def _pair_row(self, pair: Pair, *, truncation: bool = False) -> Row:
        """`<s> text </s></s> pair </s>`. Truncation shortens the longer text first."""
        return Row(pair_ids(self.tokenizer, pair, self.max_tokens, truncation))

    def _windows(self, tokens: Sequence[Token], room: int, overlap: int) -> list[range]:
        """Stretches of at most `room` tokens that overlap by `overlap`, and cover all of them."""
        if not 0 <= overlap < room:
            raise ValueError(f"overlap must lie between 0 and the {room} tokens of a window, not be {overlap}")
        return windows(len(tokens), room, overlap)


class OneOrMany(Generic[Input, Output]):
    """A call for one input and `batch` for a list, of a task whose `stream` takes any iterable."""

    stream: Callable[..., Iterator[Output]]

    def __call__(self, one: Input, **options: Any) -> Output:
        """The result of one input; options as for `stream`."""
        return self.batch([one], **options)[0]

    def batch(self, inputs: Sequence[Input], **options: Any) -> list[Output]:
        """The results of several inputs; options as for `stream`."""
        return list(self.stream(inputs, **options))


def text_ids(
    tokenizer: XLMRobertaTokenizer,
    text: str,
    max_tokens: int,
    truncation: bool,
    specials_in_text: bool | Collection[str] = False,
) -> list[int]:
    """The ids of `<s> text </s>`. Raises ValueError if it is too long and not to be cut."""
    [ids] = tokenizer.encode([text], specials_in_text=specials_in_text)
    if len(ids) + 2 > max_tokens:
        _check_truncation(len(ids) + 2, max_tokens, truncation)
        ids = ids[: max_tokens - 2]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


def pair_ids(tokenizer: XLMRobertaTokenizer, pair: Pair, max_tokens: int, truncation: bool) -> list[int]:
    """The ids of `<s> text </s></s> pair </s>`. Truncation shortens the longer text first.

    Raises ValueError if the pair is too long and not to be cut.
    """
    first, second = tokenizer.encode(pair, specials_in_text=False)
    room = max_tokens - 4
    if len(first) + len(second) > room:
        _check_truncation(len(first) + len(second) + 4, max_tokens, truncation)
        shorter = min(len(first), len(second), room // 2)
        cut = (shorter, room - shorter) if len(first) <= len(second) else (room - shorter, shorter)
        first, second = first[: cut[0]], second[: cut[1]]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [begin, *first, end, end, *second, end]


def windows(count: int, room: int, overlap: int) -> list[range]:
    """Stretches of at most `room` tokens that overlap by `overlap`, and cover all `count` of them."""
    starts = range(0, max(1, count - overlap), room - overlap)
    return [range(start, min(start + room, count)) for start in starts]


def begins_word(text: str, token: Token) -> bool:
    """Whether there is white space before the token. SentencePiece has a space for some other characters as well."""
    return token.piece.startswith(SPACE) and (token.start == 0 or text[token.start - 1].isspace())


def check_finite(numbers: Tensor) -> None:
    """Raises FloatingPointError if the model answered NaN or infinity."""
    if not numbers.isfinite().all():
        raise FloatingPointError(
            "the model's output is not finite: `xlmr inspect --values` shows which weights are not"
        )


def _check_truncation(count: int, limit: int, truncation: bool) -> None:
    if not truncation:
        raise ValueError(
            f"the text has {count} tokens, special ones included; at most {limit} fit: pass truncation=True "
            "(--truncate on the command line), or split the text"
        )
