"""Question answering: a question and a context in, the stretches of the context that answer it out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_core.heads import XLMRobertaForQuestionAnswering
from xlmr_core.tasks.rows import BATCH_TOKENS, OnError, Row, packed, run_in_order
from xlmr_core.tasks.task import Task, begins_word, check_finite
from xlmr_core.tokenizer import Token


@dataclass(frozen=True)
class Span:
    """One answer, with the field names of transformers' question-answering pipeline (version 4)."""

    score: float  # probability of its start times that of its end
    start: int  # characters of the context
    end: int
    answer: str  # context[start:end]; empty: the context does not answer the question


class Question(NamedTuple):
    """A question and the text to look in."""

    question: str
    context: str


@dataclass(frozen=True)
class ContextRow(Row):
    """`<s> question </s></s> part of the context </s>`."""

    first: int  # place in the row of the part's first token
    window: range  # the part, in tokens of the context
    tokens: Sequence[Token]  # all of the context's


class Answer(Task[XLMRobertaForQuestionAnswering]):
    """Finds answers in contexts of any length (Devlin et al. 2019, section 4.2). Long ones are read in windows."""

    model_class = XLMRobertaForQuestionAnswering

    def __call__(self, question: str, context: str, **options: Any) -> list[Span]:
        """The best answers to one question; options as for `stream`."""
        return self.batch([(question, context)], **options)[0]

    def batch(self, questions: Sequence[tuple[str, str]], **options: Any) -> list[list[Span]]:
        """The best answers to several questions, each with its context; options as for `stream`."""
        return list(self.stream(questions, **options))

    def stream(
        self,
        questions: Iterable[tuple[str, str]],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        no_answer: bool = False,
        whole_words: bool = True,
        max_tokens: int = 384,
        overlap: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        on_error: OnError | None = None,
    ) -> Iterator[list[Span]]:
        """The best answers to each question, in order, lazily.

        Args:
            questions: Any iterable of (question, context).
            top_k: Answers for each question; fewer where the context has fewer.
            max_answer_tokens: Longest answer.
            no_answer: Whether the empty answer takes part: for checkpoints trained with questions that have none.
            whole_words: Whether an answer is extended to the words that it begins and ends in.
            max_tokens: Longest window, with the question and the special tokens.
            overlap: Tokens that two windows share; 128 by default, or half a window that is shorter than 256.
            batch_tokens: Tokens that run together.
            on_error: Called with a question that the model cannot take (and its context) and with the error, in the
                order of the questions; the question then has no result. None raises the error.

        Raises:
            ValueError: An empty question or context, or a question that leaves no room for the context.
        """
        if top_k < 1 or max_answer_tokens < 1:
            raise ValueError(f"top_k {top_k} and max_answer_tokens {max_answer_tokens} must be at least 1")
        longest = min(max_tokens, self.max_tokens)
        shared = min(128, longest // 2) if overlap is None else overlap

        def encode(pair: tuple[str, str]) -> list[ContextRow]:
            question, context = pair
            asked = [token.id for token in self.tokenizer.tokenize(question, specials_in_text=False)]
            tokens = self.tokenizer.tokenize(context, specials_in_text=False)
            if not asked or not tokens:
                raise ValueError(f"the {'context' if asked else 'question'} is empty")
            room = longest - len(asked) - 4
            if room <= shared:
                raise ValueError(
                    f"the question has {len(asked)} tokens and leaves {max(room, 0)} of {longest} for the context; "
                    f"it must leave more than the overlap of {shared}: shorten it, or pass a smaller overlap"
                )
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            return [
                ContextRow(
                    [begin, *asked, end, end, *(tokens[i].id for i in window), end], len(asked) + 3, window, tokens
                )
                for window in self._windows(tokens, room, shared)
            ]

        for encoded, logits in run_in_order(
            questions, encode, self._logits, batch_tokens=batch_tokens, on_error=on_error
        ):
            tokens, context = encoded.rows[0].tokens, encoded.input[1]
            found: dict[tuple[int, int], float] = {}
            nothing = 1.0
            for row, own in zip(encoded.rows, logits, strict=True):
                # Several spans may lie in the same words: more are looked at then, as many as in transformers.
                spans, none = _best_spans(row, own, max_answer_tokens, 2 * top_k + 10 if whole_words else top_k)
                nothing = min(nothing, none)
                inside: dict[tuple[int, int], float] = {}
                for first, last, score in spans:
                    place = _characters(context, tokens, first, last, whole_words)
                    inside[place] = inside.get(place, 0.0) + score  # spans that end in the same words
                for place, score in inside.items():
                    found[place] = max(score, found.get(place, 0.0))
            answers = [Span(score, start, end, context[start:end]) for (start, end), score in found.items()]
            if no_answer:
                answers.append(Span(nothing, 0, 0, ""))
            yield sorted(answers, key=lambda answer: answer.score, reverse=True)[:top_k]

    @torch.inference_mode()
    def _logits(self, rows: Sequence[ContextRow]) -> list[Tensor]:
        output = self.model(**packed(rows, self.device))
        both = torch.stack([output.start_logits, output.end_logits]).float().cpu()  # (2, T)
        check_finite(both)
        return list(both.split([len(row) for row in rows], dim=1))


def _best_spans(
    row: ContextRow, logits: Tensor, longest: int, count: int
) -> tuple[list[tuple[int, int, float]], float]:  # logits: (2, S)
    """The best spans of a window, in tokens of the context, and the score of the answer that there is none.

    The probabilities are over the part of the context and <s>, which stands for no answer.
    """
    part = slice(row.first, row.first + len(row.window))
    kept = torch.cat([logits[:, :1], logits[:, part]], dim=1)  # (2, 1 + part)
    start, end = kept.softmax(dim=1)
    nothing = float(start[0] * end[0])
    width = min(longest, len(row.window))  # not all pairs: a window of 8,192 tokens would have 67 million of them
    ends = F.pad(end[1:], (0, width - 1)).unfold(0, width, 1)  # (start, width): the ends at and behind each start
    scores = start[1:, None] * ends
    best = scores.flatten().topk(min(count, scores.numel()))
    spans: list[tuple[int, int, float]] = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        first = row.window.start + place // width
        if score > 0:
            spans.append((first, first + place % width, score))
    return spans, nothing


def _characters(text: str, tokens: Sequence[Token], first: int, last: int, whole_words: bool) -> tuple[int, int]:
    """The characters of a span of tokens; with `whole_words`, from the last white space before it to the next."""
    if whole_words:
        while first > 0 and not begins_word(text, tokens[first]):
            first -= 1
        while last + 1 < len(tokens) and not begins_word(text, tokens[last + 1]):
            last += 1
    return tokens[first].start, tokens[last].end
