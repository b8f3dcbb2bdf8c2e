"""Text to ids and back: SentencePiece pieces, fairseq's numbering of them, and where in the text each one lies.

The pieces are those of a SentencePiece unigram model (Kudo and Richardson 2018). The ids are those of fairseq, whose
dictionary puts four tokens of its own first and `<mask>` last (fairseq/data/dictionary.py):

    token           <s>   <pad>   </s>   <unk>   each other piece   <mask>
    SentencePiece     1       -      2       0                  i        -
    XLM-R             0       1      2       3              i + 1     last
"""

import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self, Unpack  # typing's own is from Python 3.11

from xlmr_core.atomic import written_together
from xlmr_core.formatting import aligned
from xlmr_core.hub_options import HubOptions
from xlmr_core.json_files import TOKENIZER_LIMIT, check_size

SPACE = "▁"  # U+2581: how SentencePiece spells a space
LEADING_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
MASK = "<mask>"  # the last id
SPECIALS = (*LEADING_SPECIALS, MASK)
# The control characters that SentencePiece's nmt_nfkc normalisation drops: they belong to no piece.
DROPPED = "".join(map(chr, [*range(1, 9), 11, *range(14, 32), 127, 143, 159]))


class Token(NamedTuple):
    """One token of a text; `text[start:end]` is what it stands for."""

    piece: str  # as SentencePiece spells it, the space before a word included: "▁world"
    spm_id: (
        int | None
    )  # its number in the SentencePiece model; None for a special token, which SentencePiece never sees
    id: int  # its number for XLM-R
    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """Texts as tensors: `model(**batch)` takes input_ids and attention_mask.

    The lists have an entry for each real token, none for padding. The `<s>` and `</s>` around a text are not in it:
    their offsets are (0, 0) and their sequence id is None.
    """

    input_ids: Tensor  # (B, S), int64; rows are padded on the right with <pad>
    attention_mask: Tensor  # (B, S), int64: 1 = real token, 0 = padding
    offsets: list[list[tuple[int, int]]]  # where the token stands: text[start:end]
    sequence_ids: list[list[int | None]]  # which text that is: 0 = the text, 1 = its pair

    def keys(self) -> Iterator[str]:
        return iter(("input_ids", "attention_mask"))

    def __getitem__(self, key: str) -> Tensor:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}[key]

    def packed(self) -> dict[str, Tensor]:
        """The same texts one after the other, without padding, as every model takes them: `model(**batch.packed())`.

        What comes out for each token is packed, too: `hidden.split(lengths.tolist())` has a tensor for each text.
        """
        real = self.attention_mask.bool()
        return {"input_ids": self.input_ids[real], "lengths": real.sum(dim=1)}  # (T,), (B,)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


@dataclass(frozen=True)
class Explanation:
    """How a text becomes ids. `str()` of it is a table."""

    text: str
    normalized: str  # as SentencePiece sees it: NFKC, single spaces, each spelled "▁"
    tokens: list[Token]  # <s> and </s> included

    def __str__(self) -> str:
        rows = [["piece", "SentencePiece id", "id", "start", "end", "text"]]
        for piece, spm_id, number, start, end in self.tokens:
            spm_number = "-" if spm_id is None else str(spm_id)
            rows.append([_printable(piece), spm_number, str(number), str(start), str(end)])
            rows[-1].append(_printable(self.text[start:end]))
        lines = [f"text        {_printable(self.text)}", f"normalised  {_printable(self.normalized)}", ""]
        return "\n".join(lines + aligned(rows, _display_width))


class XLMRobertaTokenizer:
    """Text to ids and back, with the vocabulary in a SentencePiece model file (sentencepiece.bpe.model).

    Raises FileNotFoundError for a missing file, ValueError for one that is not a model numbered as XLM-R's.
    """

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)

    def __init__(self, model_file: str | PathLike[str], *, max_tokens: int = 512) -> None:
        from sentencepiece import SentencePieceProcessor

        if not Path(model_file).is_file():
            raise FileNotFoundError(f"there is no SentencePiece model file {model_file}")
        check_size(model_file, TOKENIZER_LIMIT)
        try:
            self._spm = SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{model_file} is not a SentencePiece model, or it is damaged: {error}") from error
        first_pieces = [self._spm.id_to_piece(i) for i in range(min(3, len(self._spm)))]
        own = [name for name in ("<pad>", MASK, "<0x00>") if self._spm.piece_to_id(name) != self._spm.unk_id()]
        if first_pieces != ["<unk>", "<s>", "</s>"] or own:
            raise ValueError(
                f"{model_file} is not numbered as XLM-R's vocabulary: its pieces must begin with <unk>, <s>, </s> and "
                f"hold no <pad>, <mask> or bytes, but they begin with {', '.join(first_pieces)}"
                + (f" and hold {', '.join(own)}" if own else "")
            )
        spaced: str = self._spm.normalize("a  b")  # XLM-R's gives "▁a▁b"
        refused = {
            "treat_whitespace_as_suffix=true": spaced.endswith(SPACE),
            "remove_extra_whitespaces=false": 2 * SPACE in spaced,
        }
        if any(refused.values()):
            raise ValueError(
                f"{model_file} was trained with {', '.join(name for name in refused if refused[name])}, but a "
                "vocabulary must have one space before each word, as XLM-R's has. Train it without that option"
            )
        self.max_tokens = max_tokens
        self.vocab_size = len(self._spm) + 2  # <pad> and <mask>
        self.mask_token_id = self.vocab_size - 1
        self._special_ids = {name: i for i, name in enumerate(LEADING_SPECIALS)} | {MASK: self.mask_token_id}
        self._special_names = {i: name for name, i in self._special_ids.items()}

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        **hub: Unpack[HubOptions],
    ) -> Self:
        """The tokenizer in `source`: a hub id, a folder, a SentencePiece model file, or "xlmr-tiny"."""
        from xlmr_core.checkpoint import find_tokenizer

        model_file, max_tokens = find_tokenizer(source, **hub)
        return cls(model_file, max_tokens=max_tokens)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes sentencepiece.bpe.model and tokenizer_config.json, which transformers reads too.

        A process that is killed leaves both old files, both new ones, or a folder without sentencepiece.bpe.model.

        Args:
            folder: where to write; it is made if it does not exist. Files of the same names are replaced.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": self.max_tokens}
        with written_together(folder, "tokenizer_config.json", "sentencepiece.bpe.model") as (config, pieces):
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            pieces.write_bytes(self._spm.serialized_model_proto())

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        truncation: bool | Literal["left", "right"] = False,
        max_tokens: int | None = None,
        specials_in_text: bool | Collection[str] = True,
    ) -> Batch:
        """Texts to tensors: `<s> text </s>`, or `<s> text </s></s> pair </s>` where pairs are given.

        truncation: True or "right" drops tokens from the end of what is too long, "left" from its beginning; of a
            pair, the longer text gives first. False raises ValueError.
        max_tokens: the longest row, with `<s>` and `</s>`; the tokenizer's own `max_tokens` if None.
        specials_in_text: whether "<mask>" and the like in a text are tokens. False takes them as plain text: use it
            for text from strangers. A collection, such as ("<mask>",), lists those that are tokens.
        """
        if truncation not in (False, True, "left", "right"):
            raise ValueError(f"truncation must be False, True, 'right' or 'left', not {truncation!r}")
        texts = _checked_list(texts, "texts")
        pairs = None if pairs is None else _checked_list(pairs, "pairs")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"there must be as many pairs as texts: {len(pairs)} are not {len(texts)}")
        inputs = list(zip(texts) if pairs is None else zip(texts, pairs, strict=True))
        specials = 2 * len(inputs[0])
        limit = self.max_tokens if max_tokens is None else max_tokens
        if limit < specials:
            raise ValueError(f"max_tokens {limit} leaves no room for the {specials} special tokens of a row")

        rows: list[list[Token]] = []
        sequence_ids: list[list[int | None]] = []
        for index, parts in enumerate(inputs):
            tokens = [self.tokenize(part, specials_in_text=specials_in_text) for part in parts]
            count = sum(map(len, tokens)) + specials
            if count > limit and not truncation:
                raise ValueError(
                    f"texts[{index}]{' and its pair have' if pairs else ' has'} {count} tokens, the {specials} special "
                    f"ones included; at most {limit} fit: pass truncation=True or 'left', or split the text"
                )
            if count > limit:
                tokens = _truncated(tokens, limit - specials, truncation)
            begin, end = self._frame
            rows.append([begin, *tokens[0], end])
            sequence_ids.append([None, *[0] * len(tokens[0]), None])
            if pairs:
                rows[-1] += [end, *tokens[1], end]
                sequence_ids[-1] += [None, *[1] * len(tokens[1]), None]

        lengths = torch.tensor([len(row) for row in rows])
        width = max(map(len, rows))
        padding = [self.pad_token_id] * width
        return Batch(
            input_ids=torch.tensor([[token.id for token in row] + padding[len(row) :] for row in rows]),
            attention_mask=(torch.arange(width) < lengths[:, None]).long(),
            offsets=[[(token.start, token.end) for token in row] for row in rows],
            sequence_ids=sequence_ids,
        )

    def tokenize(self, text: str, *, specials_in_text: bool | Collection[str] = True) -> list[Token]:
        """The tokens of one text, whatever its length, without `<s>` and `</s>` around them."""
        _check_text(text, "text")
        tokens: list[Token] = []
        position = 0
        for match in _find_specials(text, specials_in_text):
            tokens += self._plain_tokens(text[position : match.start()], position)
            tokens.append(Token(match.group(), None, self._special_ids[match.group()], match.start(), match.end()))
            position = match.end()
        return tokens + self._plain_tokens(text[position:], position)

    def encode(self, texts: Sequence[str], *, specials_in_text: bool | Collection[str] = True) -> list[list[int]]:
        """The ids of each text, without `<s>` and `</s>`: those of `tokenize`, faster without offsets."""
        texts = _checked_list(texts, "texts")
        special = [any(_find_specials(text, specials_in_text)) for text in texts]
        plain: list[list[int]] = self._spm.encode(
            [text for text, is_special in zip(texts, special, strict=True) if not is_special], out_type=int
        )
        rows = iter(plain)
        return [
            [token.id for token in self.tokenize(text, specials_in_text=specials_in_text)]
            if is_special
            else [_xlmr_id(i) for i in next(rows)]
            for text, is_special in zip(texts, special, strict=True)
        ]

    def explain(self, text: str, *, specials_in_text: bool | Collection[str] = True) -> Explanation:
        """What becomes of a text on the way to ids: print it."""
        tokens = self.tokenize(text, specials_in_text=specials_in_text)
        begin, end = self._frame
        return Explanation(text, "".join(token.piece for token in tokens), [begin, *tokens, end])

    def decode(self, ids: Sequence[int] | Tensor, *, skip_special_tokens: bool = False) -> str:
        """Ids to text, as normalised: what the normalisation changed does not come back, nor do unknown characters."""
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        kept = [i for i in numbers if not (skip_special_tokens and i in self._special_names)]
        pieces = [self.id_to_token(i) for i in kept]
        return "".join(pieces[:1]).removeprefix(SPACE) + "".join(pieces[1:]).replace(SPACE, " ")

    def batch_decode(
        self, rows: Iterable[Sequence[int]] | Tensor, *, skip_special_tokens: bool = False
    ) -> list[str]:  # (B, S)
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def id_to_token(self, id: int) -> str:
        """The piece or special token with this id. Raises ValueError for an id outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"id {id} lies outside the vocabulary: allowed are 0 to {self.vocab_size - 1}")
        return self._special_names.get(id) or self._spm.id_to_piece(id - 1)

    def token_to_id(self, token: str) -> int:
        """The id of a piece or special token; that of `<unk>` for one the vocabulary does not hold."""
        return self._special_ids[token] if token in self._special_ids else _xlmr_id(self._spm.piece_to_id(token))

    @property
    def _frame(self) -> tuple[Token, Token]:
        """What stands before and after every text."""
        return Token("<s>", None, self.bos_token_id, 0, 0), Token("</s>", None, self.eos_token_id, 0, 0)

    def _plain_tokens(self, text: str, position: int) -> list[Token]:
        """The tokens of a stretch of text that begins at `position`."""
        # origins[i] is where in the text the i-th normalised character comes from; one more entry marks the end.
        _, origins = self._spm.normalize(text, with_offsets=True)
        pieces: list[str] = self._spm.encode(text, out_type=str)  # an unknown character is a piece of its own
        spm_ids: list[int] = self._spm.encode(text, out_type=int)
        tokens: list[Token] = []
        begin = 0
        for piece, spm_id in zip(pieces, spm_ids, strict=True):
            end = begin + len(piece)
            # The space before a word is not part of it; a space that stands alone counts as the word's first character.
            first = begin + piece.startswith(SPACE)
            last = max(first, end - 1)
            start = origins[first]
            # Several normalised characters may come from one, or one from several (e and a combining accent).
            last_source = text[origins[last] : origins[bisect_right(origins, origins[last])]].rstrip(DROPPED)
            stop = origins[last] + len(last_source)
            tokens.append(Token(piece, spm_id, _xlmr_id(spm_id), position + start, position + stop))
            begin = end
        return tokens


def _find_specials(text: str, wanted: bool | Collection[str]) -> Iterator[re.Match[str]]:
    """Where special tokens stand in a text: all of them, or those that are wanted."""
    names = SPECIALS if wanted is True else tuple(wanted or ())
    unknown = [name for name in names if name not in SPECIALS]
    if unknown:
        raise ValueError(f"specials_in_text lists {unknown[0]!r}; the special tokens are {', '.join(SPECIALS)}")
    return re.finditer("|".join(names), text) if names else iter(())


def _xlmr_id(spm_id: int) -> int:
    """SentencePiece's number of a piece to XLM-R's: one more, for <pad>, but <unk> has changed its place."""
    return XLMRobertaTokenizer.unk_token_id if spm_id == 0 else spm_id + 1


def _checked_list(texts: str | Sequence[str], name: str) -> list[str]:
    """The texts as a list, each one sound. Raises TypeError or ValueError that names the first that is not."""
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} must be a string or a sequence of strings, not {type(texts).__name__}")
    if not texts:
        raise ValueError(f"{name} is empty: there must be at least one text (an empty text is one)")
    for index, text in enumerate(texts):
        _check_text(text, f"{name}[{index}]")
    return list(texts)


def _check_text(text: str, name: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half a surrogate pair, {text[error.start]!r}, at character {error.start}: it is no text "
            "(text.encode(errors='replace').decode() puts '?' in its place)"
        ) from None


def _truncated(parts: list[list[Token]], room: int, side: bool | Literal["left", "right"]) -> list[list[Token]]:
    """One text or a pair, cut to `room` tokens together: what is over comes off the longer as long as it is longer."""
    lengths = [room]
    if len(parts) == 2:
        first, second = map(len, parts)
        shorter = min(first, second, room // 2)
        lengths = [shorter, room - shorter] if first <= second else [room - shorter, shorter]
    if side == "left":
        return [tokens[len(tokens) - length :] for tokens, length in zip(parts, lengths, strict=True)]
    return [tokens[:length] for tokens, length in zip(parts, lengths, strict=True)]


def _printable(text: str) -> str:
    """The text on one line: control characters and line ends become their escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _display_width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining marks none."""
    widths = {"W": 2, "F": 2}
    marks = ("Mn", "Me")
    return sum(0 if unicodedata.category(c) in marks else widths.get(unicodedata.east_asian_width(c), 1) for c in text)
