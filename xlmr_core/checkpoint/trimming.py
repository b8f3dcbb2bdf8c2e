"""A smaller vocabulary for the same model: fewer pieces, fewer rows, the same numbers.

Most of an XLM-R is its word table: 250,002 rows for a hundred languages. Trimming keeps the rows of the pieces that
are wanted and copies everything else bit for bit. A text all of whose pieces are kept is still cut into the same
pieces. Why: SentencePiece takes the path with the best sum of scores. Taking other pieces away leaves that path and
its score as they were and adds no better one. The one thing that could is `<unk>`, which may now stand where a
character's own piece was; but its score lies 10 below that of the worst piece, and the worst piece is always kept.
"""

import os
import random
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from xlmr_core import heads
from xlmr_core.atomic import folder_written_as
from xlmr_core.checkpoint.files import TOKENIZER, WEIGHTS, Files, open_beside, open_weights, read_config
from xlmr_core.checkpoint.inspection import best_class
from xlmr_core.checkpoint.loading import find_checkpoint, find_tokenizer, notes_on_files, same_bits
from xlmr_core.checkpoint.sentence_transformers import carried_from
from xlmr_core.errors import CheckpointError
from xlmr_core.hub_options import HubOptions
from xlmr_core.model import Embeddings, PretrainedModel
from xlmr_core.paths import StrPath
from xlmr_core.text_files import read_lines
from xlmr_core.tokenizer import LEADING_SPECIALS, MASK, SPACE, XLMRobertaTokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

PIECES, SELF_TEST = 1, 4  # field numbers in SentencePiece's ModelProto (sentencepiece_model.proto)
LINES = 1_000  # lines of a corpus tokenized at a time
ASCII = string.ascii_letters + string.digits + string.punctuation  # in text of every language sooner or later
PROOF_TEXTS = 16  # texts on which hidden states are compared
PROOF_TOKENS = 128  # of each; logits of the whole vocabulary take a megabyte a token
LISTED = 10  # unknown pieces named in one message


@dataclass(frozen=True)
class Coverage:
    """What the kept pieces mean for the texts that were given."""

    lines: int
    covered_lines: int  # all of their pieces are kept: their ids map one to one, and every one of them was compared
    tokens: int  # before trimming
    kept_tokens: int  # of these, how many are of a kept piece
    tokens_after: int
    unknown: int  # of the tokens, how many were <unk>
    unknown_after: int


@dataclass(frozen=True)
class Proof:
    """How much of the model was compared before and after. Where the two differ, `trim` raises and writes nothing.

    Tensors and hidden states are compared bit for bit. Logits are compared within rounding: a matrix product with
    fewer rows may be summed in another order.
    """

    tensors: int  # each bit-equal, a vocabulary tensor in the kept rows
    texts: int  # covered texts whose hidden states were compared
    tokens: int  # in those texts
    logits_gap: float | None  # largest difference between logits of kept pieces; None without an LM head

    def __str__(self) -> str:
        return "; ".join(self.lines())

    def lines(self) -> list[str]:
        """The proof, one finding a line."""
        if not self.texts:
            return [f"{self.tensors} tensors bit-equal", "no text is covered, so hidden states were not compared"]
        lines = [
            f"{self.tensors} tensors bit-equal",
            f"hidden states bit-equal on {self.texts} covered texts ({self.tokens:,} tokens)",
        ]
        if self.logits_gap is not None:
            lines.append(f"logits of kept pieces differ by at most {self.logits_gap:.1e}, within rounding")
        return lines


@dataclass(frozen=True)
class TrimReport:
    """What `trim` did. Prints as a few lines."""

    model: str
    destination: Path
    vocab_size_before: int
    vocab_size: int
    parameters_before: int
    parameters: int
    num_bytes: int  # of the weights file
    coverage: Coverage
    proof: Proof
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        c = self.coverage
        share = self.parameters / self.parameters_before
        return "\n".join(
            [
                f"wrote       {self.destination} ({self.model}, {self.num_bytes:,} bytes of weights)",
                f"vocabulary  {self.vocab_size_before:,} -> {self.vocab_size:,}",
                f"parameters  {self.parameters_before:,} -> {self.parameters:,} ({share:.1%})",
                f"coverage    {_share(c.kept_tokens, c.tokens)} of {c.tokens:,} tokens, "
                f"{_share(c.covered_lines, c.lines)} of {c.lines:,} lines",
                f"tokens      {c.tokens:,} -> {c.tokens_after:,}, of them <unk> {c.unknown:,} -> {c.unknown_after:,}",
                f"proof       ids map one to one on {c.covered_lines:,} covered lines",
                *(f"            {line}" for line in self.proof.lines()),
                *self.notes,
            ]
        )


def trim(
    source: StrPath,
    destination: StrPath,
    *,
    corpus: Sequence[StrPath] = (),
    keep: Iterable[str] = (),
    min_count: int = 1,
    max_pieces: int | None = None,
    **hub: Unpack[HubOptions],
) -> TrimReport:
    """Writes a model and its tokenizer to a new folder with a smaller vocabulary.

    The key layout written is that of transformers, as `save_pretrained` writes it. The configuration of a
    sentence-transformers folder is copied unchanged.

    Always kept: special tokens, "▁", the piece with the worst score, and as pieces of their own the characters of every
    kept piece and those of ASCII, so that a new word or a number does not become `<unk>`.

    Args:
        source: As for `load_pretrained`.
        destination: The folder to write. It must not exist.
        corpus: Text files, one text a line. Pieces that occur in them are kept.
        keep: Pieces to keep in any case, as SentencePiece spells them ("▁Hello").
        min_count: Pieces of the corpus that occur less often are not kept.
        max_pieces: Of the pieces of the corpus, only this many are kept, the most frequent ones. None: no limit.
        **hub: How to reach the hub. See `HubOptions`.

    Returns:
        Sizes before and after, the coverage of the corpus, and how much of the two models was compared.

    Raises:
        CheckpointError: `destination` exists, or the trimmed model differs from the source.
        ValueError: A piece is not in the vocabulary, a corpus is not UTF-8, or there is nothing to keep.
    """
    keep = list(keep)
    if not corpus and not keep:
        raise ValueError("nothing says which pieces to keep: give a corpus or a list of pieces")
    if min_count < 1 or (max_pieces is not None and max_pieces < 1):
        raise ValueError(f"min_count and max_pieces must be at least 1, not {min_count} and {max_pieces}")
    destination = Path(destination)
    if os.path.lexists(destination):
        raise CheckpointError(f"{destination} exists. Nothing is overwritten: give a new folder, or remove this one")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_as(destination) as whole:
        model_file, max_tokens = find_tokenizer(source, **hub)
        files = find_checkpoint(source, **hub)
        cls = _class_for(files)
        sentence = carried_from(files.root, files.weights.parent)
        folder = whole / sentence.place
        folder.mkdir(parents=True, exist_ok=True)
        before = cls.from_pretrained(source, dtype=None, **hub)
        old = XLMRobertaTokenizer(model_file, max_tokens=max_tokens)
        if before.config.vocab_size < old.vocab_size:
            raise CheckpointError(
                f"the tokenizer of {source} has {old.vocab_size} tokens, the model {before.config.vocab_size}: "
                "they do not belong together"
            )
        pieces = _kept_pieces(_open(model_file), corpus, keep, min_count, max_pieces)
        (folder / TOKENIZER).write_bytes(_with_pieces(model_file.read_bytes(), pieces))
        new = XLMRobertaTokenizer(folder / TOKENIZER, max_tokens=max_tokens)
        new.save_pretrained(folder)
        rows = _rows(pieces, old.mask_token_id)
        trimmed = _with_rows(cls.from_pretrained(source, dtype=None, **hub), rows)
        trimmed.save_pretrained(folder)
        sentence.write(whole)

        after = cls.from_pretrained(whole, dtype=None)  # as it will be read
        coverage, texts = _coverage(model_file, folder / TOKENIZER, pieces, corpus)
        return TrimReport(
            model=cls.__name__,
            destination=destination,
            vocab_size_before=before.config.vocab_size,
            vocab_size=after.config.vocab_size,
            parameters_before=sum(parameter.numel() for parameter in before.parameters()),
            parameters=sum(parameter.numel() for parameter in after.parameters()),
            num_bytes=(folder / WEIGHTS[0]).stat().st_size,
            coverage=coverage,
            proof=_proof(before, after, old, new, rows, texts),
            notes=(*notes_on_files(files), *sentence.notes),
        )


def _class_for(files: Files) -> type[PretrainedModel]:
    """The model class with the head that is in the file, so that none is lost."""
    weights = open_weights(files.weights, headers_only=True) | open_beside(files.weights, headers_only=True)
    cls, _ = best_class(read_config(files.config), weights, files)
    return cls


# ---- which pieces ----------------------------------------------------------------------------------------------------


def _kept_pieces(
    spm: "SentencePieceProcessor", corpus: Sequence[StrPath], keep: list[str], min_count: int, max_pieces: int | None
) -> list[int]:
    """The SentencePiece ids to keep, in order."""
    kept = set(_chosen(spm, _batches(corpus), min_count, max_pieces))
    wanted = {piece for piece in keep if piece not in (*LEADING_SPECIALS, MASK)}  # these are kept anyway
    strange = sorted(piece for piece in wanted if spm.id_to_piece(spm.piece_to_id(piece)) != piece)
    if strange:
        more = f" and {len(strange) - LISTED} more" if len(strange) > LISTED else ""
        raise ValueError(f"not pieces of this vocabulary: {', '.join(map(repr, strange[:LISTED]))}{more}")
    kept |= {spm.piece_to_id(piece) for piece in wanted}
    if not kept:
        raise ValueError("no piece is left: the corpus is empty, or min_count is too high")

    special = {i for i in range(len(spm)) if spm.is_unknown(i) or spm.is_control(i) or spm.is_unused(i)}
    kept.add(min(set(range(len(spm))) - special, key=spm.get_score))  # SentencePiece derives the score of <unk> from it
    characters = {SPACE, *ASCII}.union(*(spm.id_to_piece(i) for i in kept - special))
    kept |= {i for character in characters if (i := spm.piece_to_id(character)) != spm.unk_id()}
    return sorted(kept | special)


def _chosen(
    spm: "SentencePieceProcessor", batches: Iterable[list[str]], min_count: int, max_pieces: int | None
) -> list[int]:
    """The ids of the pieces that are frequent enough, the most frequent first."""
    counts: Counter[int] = Counter()
    for lines in batches:
        for ids in spm.encode(lines):
            counts.update(ids)
    return sorted((i for i in counts if counts[i] >= min_count), key=lambda i: (-counts[i], i))[:max_pieces]


def _batches(corpus: Iterable[StrPath]) -> Iterator[list[str]]:
    """The lines of the files, some at a time, without their line ends and without empty ones."""
    for path in corpus:
        lines = (line for line in read_lines(path) if line)
        while batch := list(islice(lines, LINES)):
            yield batch


def _open(model_file: Path) -> "SentencePieceProcessor":
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(model_file))


# ---- the SentencePiece model -----------------------------------------------------------------------------------------


def _with_pieces(proto: bytes, kept: Iterable[int]) -> bytes:
    """The SentencePiece model with only these pieces. Normalisation and settings are copied byte for byte.

    It is a protobuf message, and a piece is one entry of its field 1, in the order of the ids: to leave some out, it
    is enough to know where each field begins and ends. Its self-test, if any, goes: it may need a dropped piece.
    """
    fields = list(_fields(proto))
    pieces = [content for number, content in fields if number == PIECES]
    rest = [content for number, content in fields if number not in (PIECES, SELF_TEST)]
    return b"".join([pieces[i] for i in kept] + rest)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message: the number of each, and its bytes with their tag.

    https://protobuf.dev/programming-guides/encoding
    """
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
            position += length
        elif kind in (1, 5):
            position += {1: 8, 5: 4}[kind]
        else:
            raise ValueError(f"not a SentencePiece model: a field of wire type {kind} at byte {start}")
        yield tag >> 3, message[start:position]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while message[position] & 0x80:
        value |= (message[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | message[position] << shift, position + 1


# ---- the model -------------------------------------------------------------------------------------------------------


def _rows(pieces: Sequence[int], mask: int) -> Tensor:  # (new V,)
    """The old id of each new id: <s>, <pad>, </s>, <unk>, the pieces, <mask>. See tokenizer.py for the numbering."""
    return torch.tensor([*range(len(LEADING_SPECIALS)), *(i + 1 for i in pieces if i > 2), mask])


def _with_rows(trimmed: PretrainedModel, rows: Tensor) -> PretrainedModel:
    """The same model with these rows of every tensor that goes by the vocabulary. A tied decoder stays tied."""
    config = replace(trimmed.config, vocab_size=len(rows))
    chosen: dict[int, nn.Parameter] = {}  # by the parameter it was taken from

    def take(parameter: Tensor) -> nn.Parameter:
        if id(parameter) not in chosen:
            chosen[id(parameter)] = nn.Parameter(parameter.detach()[rows])
        return chosen[id(parameter)]

    for module in trimmed.modules():
        if isinstance(module, PretrainedModel):
            module.config = config
        if isinstance(module, Embeddings):
            module.word_embeddings.weight = take(module.word_embeddings.weight)
            module.word_embeddings.num_embeddings = len(rows)
        if isinstance(module, heads.LMHead):
            module.decoder.weight, module.decoder.bias = take(module.decoder.weight), take(module.decoder.bias)
            module.decoder.out_features = len(rows)
    return trimmed


# ---- the proof -------------------------------------------------------------------------------------------------------


def _coverage(
    old_file: Path, new_file: Path, pieces: Sequence[int], corpus: Sequence[StrPath]
) -> tuple[Coverage, list[str]]:
    """What the trimmed tokenizer makes of the corpus, or of the kept pieces if there is none, and some covered texts.

    Raises CheckpointError if a covered line is tokenized otherwise than before.
    """
    old, new = _open(old_file), _open(new_file)
    new_id = {piece: i for i, piece in enumerate(pieces)}
    batches = _batches(corpus) if corpus else [[old.id_to_piece(i).replace(SPACE, " ") for i in pieces]]
    totals: Counter[str] = Counter()
    texts: list[str] = []
    draw = random.Random(0)
    for lines in batches:
        for line, before, after in zip(lines, old.encode(lines), new.encode(lines), strict=True):
            kept = [new_id[i] for i in before if i in new_id]
            covered = len(kept) == len(before)
            if covered and kept != after:
                raise CheckpointError(f"the trimmed tokenizer splits {line!r} differently than before: this is a bug")
            totals.update(
                lines=1,
                covered_lines=covered,
                tokens=len(before),
                kept_tokens=len(kept),
                tokens_after=len(after),
                unknown=before.count(old.unk_id()),
                unknown_after=after.count(new.unk_id()),
            )
            if covered and len(texts) < PROOF_TEXTS:
                texts.append(line)
            elif covered and (index := draw.randrange(totals["covered_lines"])) < PROOF_TEXTS:
                texts[index] = line  # every covered line is as likely as any other to be among the texts
    return Coverage(**{field.name: totals[field.name] for field in fields(Coverage)}), texts


@torch.inference_mode()
def _proof(
    before: PretrainedModel,
    after: PretrainedModel,
    old: XLMRobertaTokenizer,
    new: XLMRobertaTokenizer,
    rows: Tensor,
    texts: list[str],
) -> Proof:
    """Raises CheckpointError if the two differ."""
    _demand(after.config.vocab_size == new.vocab_size, "the number of tokens of model and tokenizer")
    tensors = after.state_dict()
    for name, value in before.state_dict().items():
        kept = value if value.shape == tensors[name].shape else value[rows]
        _demand(same_bits(kept, tensors[name]), name)

    for side in (before, after):
        _move_to_fresh_memory(side)
    tokens, gap = 0, None
    limit = min(PROOF_TOKENS, old.max_tokens)
    for text in texts:
        old_ids = old(text, truncation=True, max_tokens=limit, specials_in_text=False).input_ids
        new_ids = new(text, truncation=True, max_tokens=limit, specials_in_text=False).input_ids
        _demand(torch.equal(rows[new_ids], old_ids), f"the ids of {text!r}")
        tokens += old_ids.numel()
        if isinstance(after, heads.XLMRobertaForMultipleChoice):
            old_ids, new_ids = old_ids[None], new_ids[None]  # one choice
        expected, found = vars(before(old_ids)), vars(after(new_ids))
        if isinstance(after, heads.XLMRobertaForMaskedLM):
            text_gap = _logits_gap(expected.pop("logits")[..., rows], found["logits"], after.config.hidden_size)
            gap = max(gap or 0.0, text_gap)
        for name, value in expected.items():
            _demand(value is None or torch.equal(value, found[name]), f"{name} of {text!r}")
    return Proof(len(tensors), len(texts), tokens, gap)


def _logits_gap(expected: Tensor, found: Tensor, hidden_size: int) -> float:  # (B, S, V), (B, S, V)
    """The largest difference. Raises CheckpointError if it is larger than another order of summation explains.

    The rounding error of a sum grows with the square root of the number of its terms.
    """
    tolerance = hidden_size**0.5 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
    try:
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    except AssertionError as error:
        raise CheckpointError(
            f"not the same after trimming: logits. This is a bug; nothing was written. {error}"
        ) from error
    return (found - expected).abs().max().item()


def _move_to_fresh_memory(model: PretrainedModel) -> None:
    """Copies all but the vocabulary's tensors out of the mapped file.

    How a product is summed depends on whether its factors begin at a multiple of 16 bytes, and in two files of
    different sizes that is not the same.
    """
    for parameter in model.parameters():
        if len(parameter) != model.config.vocab_size:
            parameter.data = parameter.data.clone()


def _demand(equal: bool, what: str) -> None:
    if not equal:
        raise CheckpointError(f"not the same after trimming: {what}. This is a bug; nothing was written")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "none"
