"""flair: the mean of the last layer over the tokens of a text."""

from pathlib import Path
from typing import Any

import numpy as np
from flair.data import Sentence
from flair.embeddings import TransformerDocumentEmbeddings
from port import Texts, answer


def load(folder: Path, _option: str) -> Any:
    return TransformerDocumentEmbeddings(str(folder), layers="-1", cls_pooling="mean", fine_tune=False)


def vectors(port: Any, texts: Texts) -> Any:
    sentences = [Sentence(text, use_tokenizer=False) for text in texts]
    port.embed(sentences)
    return np.stack([sentence.embedding.cpu().numpy() for sentence in sentences])


answer(load, vectors=vectors)
