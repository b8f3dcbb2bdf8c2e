"""Text files to training batches. A batch is a pure function of (seed, step), which is what makes a run resumable."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlmr_core.text_files import read_lines
from xlmr_core.tokenizer import XLMRobertaTokenizer


def sentences_in(path: Path) -> list[str]:
    """The lines of a file that are not blank. Raises ValueError if there is none, or one that is not UTF-8."""
    # splitlines: Unicode has line ends of its own
    sentences = [part for line in read_lines(path) for part in line.splitlines() if part.strip()]
    if not sentences:
        raise ValueError(f"{path} holds no sentence")
    return sentences


class Corpus:
    """One language a file, one sentence a line, held in memory as token ids."""

    def __init__(self, files: Sequence[Path], tokenizer: XLMRobertaTokenizer, *, exponent: float = 0.3) -> None:
        """Reads and tokenizes `files`; the language of a file is its name without the ending.

        A language with n of all the sentences is drawn with probability proportional to n ** `exponent`: below 1,
        small languages are seen more often than their share (Conneau et al. 2020, section 3).
        Raises ValueError for a file without a sentence, or that is not UTF-8.
        """
        self.tokenizer = tokenizer
        self.languages = [path.stem for path in files]
        self.sentences: list[list[list[int]]] = []  # language, sentence, ids without <s>
        for path in files:
            self.sentences.append([self._ids(sentence) for sentence in sentences_in(path)])
        counts = torch.tensor([float(len(sentences)) for sentences in self.sentences])
        self.probabilities = counts**exponent / (counts**exponent).sum()

    def _ids(self, sentence: str) -> list[int]:
        tokens = self.tokenizer.tokenize(sentence, specials_in_text=False)  # "<mask>" in a corpus is just text
        return [token.id for token in tokens] + [self.tokenizer.eos_token_id]

    def unigrams(self, language: str) -> Tensor:  # -> (V,)
        """How often each id occurs in a language: the baseline that looks at no context."""
        sentences = self.sentences[self.languages.index(language)]
        ids = torch.tensor([token for sentence in sentences for token in sentence])
        return torch.bincount(ids, minlength=self.tokenizer.vocab_size)

    def batch(self, generator: torch.Generator, batch_size: int, max_tokens: int) -> Tensor:  # -> (B, S)
        """Draws rows of whole consecutive sentences, `<s> a </s> b </s> ...`, as many as fit, padded to the longest."""
        languages = torch.multinomial(self.probabilities, batch_size, replacement=True, generator=generator).tolist()
        rows: list[list[int]] = []
        for language in languages:
            sentences = self.sentences[language]
            index = int(torch.randint(len(sentences), (), generator=generator))
            row = [self.tokenizer.bos_token_id, *sentences[index][: max_tokens - 1]]
            row[-1] = self.tokenizer.eos_token_id  # where the first sentence alone had to be cut
            while len(row) + len(following := sentences[(index + 1) % len(sentences)]) <= max_tokens:
                row += following
                index += 1
            rows.append(row)
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
