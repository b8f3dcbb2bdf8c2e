"""Text files to training batches. A batch depends only on the generator's seed, so a run can be resumed."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlmr_core.text_files import read_lines
from xlmr_core.tokenizer import XLMRobertaTokenizer


def sentences_in(path: Path) -> list[str]:
    """Reads the lines of a file that are not blank.

    Args:
        path: A text file, UTF-8, one sentence a line.

    Returns:
        The sentences, in the order of the file.

    Raises:
        ValueError: The file has no sentence, or a line that is not UTF-8.
    """
    # splitlines: also at U+2028 and the other line ends of Unicode
    sentences = [part for line in read_lines(path) for part in line.splitlines() if part.strip()]
    if not sentences:
        raise ValueError(f"{path} holds no sentence: give a file with one sentence a line")
    return sentences


class Corpus:
    """Sentences of several languages in memory, as token ids."""

    def __init__(self, files: Sequence[Path], tokenizer: XLMRobertaTokenizer, *, exponent: float = 0.3) -> None:
        """Reads and tokenizes the files.

        Args:
            files: Text files, UTF-8, one sentence a line. The name of a file without its ending is its language.
            tokenizer: Turns the sentences into ids. Special tokens in the text are ordinary text.
            exponent: A language with n sentences is drawn with probability proportional to n ** `exponent`. Below 1,
                small languages are drawn more often than their share (Conneau et al. 2020, section 3.1).

        Raises:
            ValueError: A file has no sentence, or a line that is not UTF-8.
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
        """Counts how often each id occurs in a language, for the baseline that ignores the context.

        Args:
            language: One of `languages`.

        Returns:
            The counts, by id: shape (V,).
        """
        sentences = self.sentences[self.languages.index(language)]
        ids = torch.tensor([token for sentence in sentences for token in sentence])
        return torch.bincount(ids, minlength=self.tokenizer.vocab_size)

    def batch(self, generator: torch.Generator, batch_size: int, max_tokens: int) -> Tensor:  # -> (B, S)
        """Draws rows of consecutive sentences of one language, `<s> a </s> b </s> ...`, cut where the row is full.

        So there is no padding (Conneau and Lample 2019, section 3.2).

        Args:
            generator: Draws the language and the first sentence of each row.
            batch_size: B, the number of rows.
            max_tokens: S, the number of tokens in a row, `<s>` and `</s>` included.

        Returns:
            The ids: shape (B, S).
        """
        languages = torch.multinomial(self.probabilities, batch_size, replacement=True, generator=generator).tolist()
        rows: list[list[int]] = []
        for language in languages:
            sentences = self.sentences[language]
            index = int(torch.randint(len(sentences), (), generator=generator))
            row = [self.tokenizer.bos_token_id]
            while len(row) < max_tokens:
                row += sentences[index % len(sentences)]
                index += 1
            rows.append(row[:max_tokens])
        return torch.tensor(rows)
