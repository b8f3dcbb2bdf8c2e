"""The page: its data as JSON, and the files beside this one that draw them."""

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from xlmr_core.atomic import written_as
from xlmr_core.tokenizer import Token


@dataclass(frozen=True)
class Likeliest:
    """The likeliest pieces at each position, the best first."""

    ids: Tensor  # (..., S, K)
    probabilities: Tensor  # (..., S, K)


@dataclass(frozen=True)
class HeadOff:
    """What the model predicts at some positions with one head switched off.

    Attributes:
        positions: In the row.
        change: (L, N, positions): of the log-probability of the piece that the whole model finds likeliest.
        likeliest: (L, N, positions, K).
    """

    positions: tuple[int, ...]
    change: Tensor
    likeliest: Likeliest


@dataclass(frozen=True)
class TextMeasures:
    """One text in the model. S is its number of tokens, `<s>` and `</s>` included."""

    text: str
    tokens: tuple[Token, ...]
    attention: Tensor  # (L, N, S, S): row = the token that looks, column = what it looks at
    rollout: Tensor  # (L, S, S): how much of each input token is in each token after the layer
    norms: Tensor  # (L + 1, S): length of the vector of each token; index 0 is what the first layer reads
    lens: Likeliest | None  # (L + 1, S, K): what the LM head answers to that vector; None without an LM head
    heads_off: HeadOff | None


@dataclass(frozen=True)
class Page:
    """One self-contained HTML page. A notebook shows it.

    Attributes:
        model: Its name, for the heading.
        layers: L.
        heads: N.
        texts: One or two.
        pieces: The piece of every id that is shown.
    """

    model: str
    layers: int
    heads: int
    texts: tuple[TextMeasures, ...]
    pieces: Mapping[int, str]

    def html(self) -> str:
        """The page, with its style and its script inside."""
        page = _file("page.html")
        # The data come last: no text of a user is searched for a name of ours.
        for name, content in (("STYLE", _file("page.css")), ("SCRIPT", _file("page.js")), ("DATA", self._json())):
            page = page.replace(f"@@{name}@@", content, 1)
        return page

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the page to a file, under a temporary name first.

        Raises:
            OSError: The file cannot be written.
        """
        with written_as(Path(path)) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """In a notebook: a frame of its own, so that neither style touches the other."""
        frame = 'style="width: 100%; height: 46rem; border: 0" title="xlmr explore"'
        return f'<iframe {frame} srcdoc="{html.escape(self.html(), quote=True)}"></iframe>'

    def _json(self) -> str:
        data = {
            "model": self.model,
            "layers": self.layers,
            "heads": self.heads,
            "pieces": self.pieces,
            "texts": [_text(text) for text in self.texts],
        }
        # "<" would let a text end the script element that holds the data.
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return (files("xlmr_core.explore") / name).read_text(encoding="utf-8")


def _text(text: TextMeasures) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": text.text,
        "tokens": [[token.piece, token.id, token.start, token.end] for token in text.tokens],
        "attention": _bytes(text.attention),
        "rollout": _bytes(text.rollout),
        "norms": _rounded(text.norms, 3),
    }
    if text.lens:
        found["lens"] = _likeliest(text.lens)
    if text.heads_off:
        found["off"] = {
            "positions": text.heads_off.positions,
            "change": _rounded(text.heads_off.change, 3),
            "likeliest": _likeliest(text.heads_off.likeliest),
        }
    return found


def _bytes(probabilities: Tensor) -> str:
    """Probabilities as one byte each, in steps of 1 / 255, in base64."""
    return base64.b64encode((probabilities * 255).round().byte().numpy().tobytes()).decode()


def _rounded(tensor: Tensor, digits: int) -> Any:
    return [round(value, digits) for value in tensor.flatten().tolist()]


def _likeliest(likeliest: Likeliest) -> dict[str, Any]:
    """Both lists are flat; `width` is K."""
    return {
        "width": likeliest.ids.shape[-1],
        "ids": likeliest.ids.flatten().tolist(),
        "p": _rounded(likeliest.probabilities, 4),
    }
