"""From labelled rows to examples: token ids and what is to be predicted, for each task.

The ids are those that the task makes of the same text, so a model is trained on what it will see.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlmr_core.errors import shortened
from xlmr_core.tasks.task import Pair, pair_ids, text_ids, windows
from xlmr_core.tokenizer import Token, XLMRobertaTokenizer
from xlmr_core.training.records import Record

IGNORED = -100  # the label of a token that has none, as in torch's cross_entropy


@dataclass(frozen=True)
class Example:
    """What one row, or a window of a long one, gives to learn from."""

    sequences: Sequence[Sequence[int]]  # token ids, `<s> ... </s>`
    target: Sequence[float] = ()  # what it means depends on the task


@dataclass(frozen=True)
class Encoder:
    """Turns the rows of a task into examples.

    Args:
        tokenizer: The tokenizer of the model.
        max_tokens: The longest sequence, with its special tokens.
        truncation: Whether a longer text is cut. Otherwise it is an error. Tagging and answering read it in windows.
        labels: The number of each class by its name.
        overlap: Tokens of a context that two windows share, in answering.
    """

    tokenizer: XLMRobertaTokenizer
    max_tokens: int
    truncation: bool = False
    labels: Mapping[str, int] = field(default_factory=dict[str, int])
    overlap: int = 0

    def classify(self, record: Record) -> Example:
        """A text, or two, with the number of its class."""
        return Example([self._text_or_pair(record)], [self._number(record, record.label())])

    def classify_multi(self, record: Record) -> Example:
        """A text, or two, with 1 for each of its classes and 0 for the others."""
        target = [0.0] * len(self.labels)
        for label in record.texts("labels"):
            target[self._number(record, label, "labels")] = 1.0
        return Example([self._text_or_pair(record)], target)

    def regress(self, record: Record) -> Example:
        """A text, or two, with a number."""
        return Example([self._text_or_pair(record)], [record.number("label")])

    def tag(self, record: Record) -> Iterator[Example]:
        """Words with the number of a class at the first token of each. A long row is parted between words.

        A word that has no token, such as a control character, has no label.
        """
        words, labels = words_and_labels(record)
        text = " ".join(words)
        tokens = self.tokenizer.tokenize(text, specials_in_text=False)
        numbers = [float(IGNORED)] * len(tokens)
        for place, label in zip(first_tokens(words, tokens), labels, strict=True):
            if place is not None:
                numbers[place] = self._number(record, label, "labels")
        room = self.max_tokens - 2
        start = 0
        while start < len(tokens):
            end = min(start + room, len(tokens))
            while end < len(tokens) and end > start + 1 and numbers[end] == IGNORED:
                end -= 1  # back to the beginning of a word
            ids = [token.id for token in tokens[start:end]]
            row = [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]
            yield Example([row], [IGNORED, *numbers[start:end], IGNORED])
            start = end

    def answer(self, record: Record) -> Iterator[Example]:
        """A question with each window of its context, and the first and the last token of the answer.

        Both are 0, the place of `<s>`, where the window does not have the whole answer (Devlin et al. 2019, section
        4.3).
        """
        question, context = record.text("question"), record.text("context")
        start, end = answer_span(record, context)
        asked = [token.id for token in self.tokenizer.tokenize(question, specials_in_text=False)]
        tokens = self.tokenizer.tokenize(context, specials_in_text=False)
        room = self.max_tokens - len(asked) - 4
        if not asked or not tokens:
            raise record.error("context" if asked else "question", "a text with words")
        if room <= self.overlap:
            raise ValueError(
                f"{record.place}: the question has {len(asked)} tokens and leaves {max(room, 0)} of {self.max_tokens} "
                f"for the context, but the overlap is {self.overlap}: shorten it, raise max_tokens or lower overlap"
            )
        inside = [i for i, token in enumerate(tokens) if token.end > start and token.start < end]
        begin, stop = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for window in windows(len(tokens), room, self.overlap):
            ids = [begin, *asked, stop, stop, *(tokens[i].id for i in window), stop]
            shift = len(asked) + 3 - window.start
            whole = bool(inside) and inside[0] in window and inside[-1] in window
            yield Example([ids], [inside[0] + shift, inside[-1] + shift] if whole else [0, 0])

    def embed(self, record: Record) -> Example:
        """A text, a text that means the same, and any number of texts that do not."""
        texts = [record.text("anchor"), record.text("positive")]
        texts += record.texts("negative") if record.has("negative") else []
        return Example([self._text(record, text) for text in texts])

    def rerank(self, record: Record) -> Iterator[Example]:
        """A query with a passage and its relevance, or a query with the passages of a group, the relevant one first."""
        query = record.text("query")
        if record.has("passage"):
            yield Example([self._pair(record, query, record.text("passage"))], [relevance(record)])
            return
        negatives = record.texts("negative")
        if not negatives:
            raise record.error("negative", "at least one passage that is not relevant")
        for positive in record.texts("positive"):
            yield Example([self._pair(record, query, passage) for passage in (positive, *negatives)])

    def _number(self, record: Record, label: str, name: str = "label") -> int:
        if label not in self.labels:
            expected = f"one of the classes of the training rows: {listed(list(self.labels))}"
            raise ValueError(
                f"{record.place}: the field {name!r} has the class {shortened(label)}, expected {expected}"
            )
        return self.labels[label]

    def _text_or_pair(self, record: Record) -> list[int]:
        if record.has("pair"):
            return self._pair(record, record.text("text"), record.text("pair"))
        return self._text(record, record.text("text"))

    def _text(self, record: Record, text: str) -> list[int]:
        try:
            return text_ids(self.tokenizer, text, self.max_tokens, self.truncation)
        except ValueError as error:
            raise ValueError(f"{record.place}: {error}") from None

    def _pair(self, record: Record, text: str, pair: str) -> list[int]:
        try:
            return pair_ids(self.tokenizer, Pair(text, pair), self.max_tokens, self.truncation)
        except ValueError as error:
            raise ValueError(f"{record.place}: {error}") from None


def count_classes(records: Iterable[Record], field: str, *, many: bool) -> dict[str, int]:
    """Counts how often each class occurs.

    Args:
        records: The training rows.
        field: The field with the class, or with the list of classes.
        many: Whether it is a list.

    Returns:
        The counts by name. The names are sorted, as numbers if all of them are.

    Raises:
        ValueError: The rows have less than two classes.
    """
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.texts(field) if many else [record.label(field)])
    if len(counts) < 2:
        found = f"only the class {next(iter(counts))!r}" if counts else "no class"
        raise ValueError(f"the training rows have {found} in the field {field!r}: expected at least two")
    are_numbers = all(name.isascii() and name.isdecimal() for name in counts)
    return {name: counts[name] for name in sorted(counts, key=int if are_numbers else None)}


def words_and_labels(record: Record) -> tuple[list[str], list[str]]:
    """The words of a row, and the label of each.

    Args:
        record: The row.

    Returns:
        As many words as labels.

    Raises:
        ValueError: Their numbers differ, or a word is empty or has white space in it.
    """
    words, labels = record.texts("words"), record.texts("labels")
    if len(words) != len(labels):
        raise ValueError(
            f"{record.place}: there are {len(words)} words and {len(labels)} labels: expected one for each"
        )
    for word in words:
        if len(word.split()) > 1:
            raise ValueError(f"{record.place}: {shortened(word)} is not one word: it has white space in it")
    return words, labels


def first_tokens(words: Sequence[str], tokens: Sequence[Token]) -> list[int | None]:
    """The first token of each word of `" ".join(words)`; None for a word without a token."""
    places: list[int | None] = []
    start, token = 0, 0
    for word in words:
        while token < len(tokens) and tokens[token].start < start:
            token += 1
        found = token < len(tokens) and tokens[token].start < start + len(word)
        places.append(token if found else None)
        start += len(word) + 1
    return places


def answer_span(record: Record, context: str) -> tuple[int, int]:
    """The characters of the answer in the context; (0, 0) where the row has no answer.

    Args:
        record: The row: fields `answer` and `start`, or `answers` as SQuAD has it.
        context: Its context.

    Raises:
        ValueError: The answer does not stand at that place of the context.
    """
    answer, start = _first_answer(record)
    if not answer:
        return 0, 0
    if context[start : start + len(answer)] != answer or start < 0:
        raise ValueError(
            f"{record.place}: the answer {shortened(answer)} does not stand at character {start} of the context, where "
            f"{shortened(context[max(0, start) : max(0, start) + len(answer)])} stands"
        )
    return start, start + len(answer)


def answers_of(record: Record) -> list[str]:
    """All answers that the row accepts; none where the context has no answer."""
    if record.has("answers"):
        return list(_squad(record)["text"])
    return [record.text("answer")] if record.has("answer") else []


def relevance(record: Record) -> float:
    """How relevant the passage of a row is: a number from 0 to 1."""
    number = record.number("label")
    if not 0 <= number <= 1:
        raise record.error("label", "a relevance from 0 to 1")
    return number


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def _first_answer(record: Record) -> tuple[str, int]:
    if record.has("answers"):
        answers = _squad(record)
        return (answers["text"][0], answers["answer_start"][0]) if answers["text"] else ("", 0)
    if not record.has("answer"):
        return "", 0
    start = record.number("start")
    if start != int(start):
        raise record.error("start", "the number of a character")
    return record.text("answer"), int(start)


def _squad(record: Record) -> Mapping[str, Sequence[Any]]:
    """{"text": [...], "answer_start": [...]}"""
    value = record.values[record.names.get("answers", "answers")]
    texts, starts = (value.get(key) for key in ("text", "answer_start")) if isinstance(value, Mapping) else (None, None)
    if (
        not isinstance(texts, list)
        or not isinstance(starts, list)
        or len(texts) != len(starts)
        or not all(isinstance(text, str) for text in texts)
        or not all(type(start) is int for start in starts)
    ):
        raise record.error("answers", 'lists of equal length: {"text": [...], "answer_start": [...]}')
    return value
