"""Text to ids and back: SentencePiece pieces, fairseq's numbering of them, and where in the text each one lies.

The pieces are those of a SentencePiece unigram model (Kudo and Richardson 2018). The ids are those of fairseq, whose
dictionary puts four tokens of its own first and `<mask>` last (fairseq/data/dictionary.py):

    token           <s>   <pad>   </s>   <unk>   each other piece   <mask>
    SentencePiece     1       -      2       0                  i        -
    XLM-R             0       1      2       3              i + 1     last
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from xlmr_core.text_checks import check_text, checked_list

if TYPE_CHECKING:
    from jaxtyping import Int
    from typing_extensions import Self, Unpack  # those of typing are from Python 3.11

    from xlmr_core.explanation import Explanation
    from xlmr_core.hub_options import HubOptions

SPACE = "▁"  # U+2581: how SentencePiece spells a space
LEADING_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
MASK = "<mask>"  # the last id
SPECIALS = (*LEADING_SPECIALS, MASK)
# The control characters that SentencePiece's nmt_nfkc normalisation drops: they belong to no piece.
DROPPED = "".join(map(chr, [*range(1, 9), 11, *range(14, 32), 127, 143, 159]))


class Token(NamedTuple):
    """One token of a text; `text[start:end]` is the part of the text that it covers.

    Args:
        piece: as SentencePiece spells it, with the space before a word: "▁world".
        spm_id: its number in the SentencePiece model; None for a special token, which SentencePiece never sees.
        id: its number for XLM-R.
        start: first character in the text.
        end: the character after the last.
    """

    piece: str
    spm_id: int | None
    id: int
    start: int
    end: int


BEGIN = Token("<s>", None, 0, 0, 0)  # before every text; it covers none of it
END = Token("</s>", None, 2, 0, 0)  # after every text


@dataclass(frozen=True)
class Batch:
    """Texts as tensors: `model(**batch)` takes input_ids and attention_mask.

    The lists have an entry for each real token and none for padding. The offsets of the special tokens around a text
    are (0, 0) and their sequence id is None.

    Args:
        input_ids: int64; rows are padded on the right with `<pad>`.
        attention_mask: int64, 1 for a real token and 0 for padding.
        offsets: (start, end) of each token of a row: `text[start:end]`.
        sequence_ids: the text that each token of a row comes from: 0 is the text, 1 its pair.
    """

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    offsets: list[list[tuple[int, int]]]
    sequence_ids: list[list[int | None]]

    def keys(self) -> Iterator[str]:
        return iter(("input_ids", "attention_mask"))

    def __getitem__(self, key: str) -> Int[Tensor, "batch seq"]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}[key]

    def packed(self) -> dict[str, Tensor]:
        """The same texts one after the other, without padding, as every model takes them: `model(**batch.packed())`.

        Returns:
            `input_ids`, of shape (packed,), and `lengths`, the number of tokens of each text, of shape (batch,). The
            output for each token is packed too: `hidden.split(lengths.tolist())` has a tensor for each text.
        """
        real = self.attention_mask.bool()
        return {"input_ids": self.input_ids[real], "lengths": real.sum(dim=1)}

    def to(self, device: torch.device | str) -> Self:
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


class XLMRobertaTokenizer:
    """Text to ids and back, with the vocabulary in a SentencePiece model file (sentencepiece.bpe.model).

    Args:
        model_file: the SentencePiece model.
        max_tokens: longest row of a batch, in tokens with `<s>` and `</s>`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a SentencePiece model whose pieces are numbered as XLM-R's.
    """

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)

    def __init__(self, model_file: str | PathLike[str], *, max_tokens: int = 512) -> None:
        from xlmr_core.tokenizer_files import open_sentencepiece  # here: it loads sentencepiece

        self._spm = open_sentencepiece(model_file)
        self.max_tokens = max_tokens
        self.vocab_size = len(self._spm) + 2  # <pad> and <mask>
        self.mask_token_id = self.vocab_size - 1
        self._special_ids = {name: i for i, name in enumerate(LEADING_SPECIALS)} | {MASK: self.mask_token_id}
        self._special_names = {i: name for name, i in self._special_ids.items()}

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], **hub: Unpack[HubOptions]) -> Self:
        """The tokenizer in `source`.

        Args:
            source: a hub id, a folder, a SentencePiece model file, or "xlmr-tiny".
            **hub: see `HubOptions`.

        Raises:
            CheckpointError: there is no tokenizer of XLM-R.
        """
        from xlmr_core.checkpoint import find_tokenizer

        model_file, max_tokens = find_tokenizer(source, **hub)
        return cls(model_file, max_tokens=max_tokens)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes sentencepiece.bpe.model and tokenizer_config.json, which transformers reads too.

        A process that is killed leaves both old files, both new ones, or a folder without sentencepiece.bpe.model.

        Args:
            folder: where to write; it is made if it does not exist. Files of the same names are replaced.
        """
        from xlmr_core.tokenizer_files import write_tokenizer

        write_tokenizer(self._spm, self.max_tokens, folder)

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

        Args:
            texts: one text, or at least one in a sequence.
            pairs: a second text for each text.
            truncation: True or "right" drops tokens from the end of a row that is too long, "left" from its
                beginning; of a pair, the longer text is cut first. False raises ValueError.
            max_tokens: the longest row, with `<s>` and `</s>`; the tokenizer's own `max_tokens` if None.
            specials_in_text: whether "<mask>" and the like in a text are tokens. False takes them as plain text: use
                it for text from strangers. A collection, such as ("<mask>",), lists those that are tokens.

        Raises:
            TypeError: a text is not a string.
            ValueError: there is no text, a text is not Unicode text, texts and pairs differ in number, a row does not
                fit, or an option has an unknown value.
        """
        if truncation not in (False, True, "left", "right"):
            raise ValueError(f"truncation must be False, True, 'right' or 'left', not {truncation!r}")
        texts = checked_list(texts, "texts")
        pairs = None if pairs is None else checked_list(pairs, "pairs")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"expected as many pairs as texts: {len(texts)}, got {len(pairs)}")
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
            rows.append([BEGIN, *tokens[0], END])
            sequence_ids.append([None, *[0] * len(tokens[0]), None])
            if pairs:
                rows[-1] += [END, *tokens[1], END]
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
        """The tokens of one text, whatever its length, without `<s>` and `</s>` around them.

        Args:
            text: the text.
            specials_in_text: as in a call of the tokenizer.

        Raises:
            TypeError, ValueError: as a call of the tokenizer.
        """
        check_text(text, "text")
        tokens: list[Token] = []
        position = 0
        for match in _find_specials(text, specials_in_text):
            tokens += self._plain_tokens(text[position : match.start()], position)
            tokens.append(Token(match.group(), None, self._special_ids[match.group()], match.start(), match.end()))
            position = match.end()
        return tokens + self._plain_tokens(text[position:], position)

    def encode(self, texts: Sequence[str], *, specials_in_text: bool | Collection[str] = True) -> list[list[int]]:
        """The ids of each text, without `<s>` and `</s>`: those of `tokenize`, but faster, without offsets.

        Args:
            texts: at least one text.
            specials_in_text: as in a call of the tokenizer.

        Raises:
            TypeError, ValueError: as a call of the tokenizer.
        """
        texts = checked_list(texts, "texts")
        plain: list[list[int]] = [self._spm.encode(text) for text in texts]  # a list would start threads each time
        return [
            [token.id for token in self.tokenize(text, specials_in_text=specials_in_text)]
            if any(_find_specials(text, specials_in_text))
            else [_xlmr_id(i) for i in spm_ids]
            for text, spm_ids in zip(texts, plain, strict=True)
        ]

    def explain(self, text: str, *, specials_in_text: bool | Collection[str] = True) -> Explanation:
        """How a text becomes ids, as a table: print it.

        Args:
            text: the text.
            specials_in_text: as in a call of the tokenizer.
        """
        from xlmr_core.explanation import Explanation

        tokens = self.tokenize(text, specials_in_text=specials_in_text)
        return Explanation(text, "".join(token.piece for token in tokens), [BEGIN, *tokens, END])

    def decode(self, ids: Sequence[int] | Int[Tensor, "seq"], *, skip_special_tokens: bool = False) -> str:
        """Ids to normalised text: what the normalisation changed does not come back, nor do unknown characters.

        Args:
            ids: ids of one row; a tensor has the shape (seq,).
            skip_special_tokens: whether special tokens are left out.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        numbers: list[int] = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        pieces = [self.id_to_token(i) for i in numbers if not (skip_special_tokens and i in self._special_names)]
        return "".join(pieces[:1]).removeprefix(SPACE) + "".join(pieces[1:]).replace(SPACE, " ")

    def batch_decode(
        self, rows: Iterable[Sequence[int]] | Int[Tensor, "batch seq"], *, skip_special_tokens: bool = False
    ) -> list[str]:
        """The text of each row, as `decode` gives it."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def id_to_token(self, id: int) -> str:
        """The piece or special token with this id.

        Raises:
            ValueError: the id is not in the vocabulary.
        """
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"id {id} is not in the vocabulary: expected 0..{self.vocab_size - 1}")
        return self._special_names.get(id) or self._spm.id_to_piece(id - 1)

    def token_to_id(self, token: str) -> int:
        """The id of a piece or special token; that of `<unk>` for one that the vocabulary does not have."""
        return self._special_ids[token] if token in self._special_ids else _xlmr_id(self._spm.piece_to_id(token))

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
            # The space before a word is not part of it; a space that is a whole piece counts as its first character.
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
    """The special tokens in a text: all of them, or those that are wanted."""
    names = SPECIALS if wanted is True else tuple(wanted or ())
    unknown = [name for name in names if name not in SPECIALS]
    if unknown:
        raise ValueError(f"specials_in_text lists {unknown[0]!r}; the special tokens are {', '.join(SPECIALS)}")
    return re.finditer("|".join(names), text) if names else iter(())


def _xlmr_id(spm_id: int) -> int:
    """SentencePiece's number of a piece to XLM-R's: one more, for <pad>, but <unk> is moved."""
    return XLMRobertaTokenizer.unk_token_id if spm_id == 0 else spm_id + 1


def _truncated(parts: list[list[Token]], room: int, side: bool | Literal["left", "right"]) -> list[list[Token]]:
    """One text or a pair, cut to `room` tokens in all: the longer text is cut until both are equally long."""
    lengths = [room]
    if len(parts) == 2:
        first, second = map(len, parts)
        shorter = min(first, second, room // 2)
        lengths = [shorter, room - shorter] if first <= second else [room - shorter, shorter]
    if side == "left":
        return [tokens[len(tokens) - length :] for tokens, length in zip(parts, lengths, strict=True)]
    return [tokens[:length] for tokens, length in zip(parts, lengths, strict=True)]
