"""Right inputs and right answers: the bundled model on a few texts, in float64, with every tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from xlmr_core import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer
from xlmr_core.checkpoint.files import open_weights
from xlmr_core.paths import package_data
from xlmr_course.step import Case

TEXTS = ["What are <mask> doing here?", "Я не знаю, що <mask>.", "भारत <mask> प्रधानमंत्री"]


@dataclass(frozen=True)
class Sample:
    """One batch in the model."""

    about: str
    input_ids: Tensor  # (B, S)
    mask: Tensor  # (B, S): True for a real token
    taps: Mapping[str, Tensor]

    def layer(self, index: int) -> Mapping[str, Tensor]:
        """The taps of one layer without its prefix, and what the layer reads as "input"."""
        prefix = f"layers.{index}."
        found = {name.removeprefix(prefix): tensor for name, tensor in self.taps.items() if name.startswith(prefix)}
        below = "embeddings.output" if index == 0 else f"layers.{index - 1}.output"
        return {**found, "input": self.taps[below]}


@dataclass(frozen=True)
class Material:
    """What all steps draw from."""

    tokenizer: XLMRobertaTokenizer
    config: XLMRobertaConfig
    model: XLMRobertaForMaskedLM  # float64
    samples: tuple[Sample, ...]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By the names of the course, which are those of this project without `encoder.`."""
        tensors = self.model.state_dict()
        return {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}

    @cached_property
    def published(self) -> dict[str, Tensor]:
        """The tensors of the checkpoint's own file, under their published names."""
        tensors = open_weights(package_data("xlmr-tiny") / "model.safetensors")
        return {name: tensor.double() for name, tensor in tensors.items()}

    def spm_ids(self, text: str) -> list[int]:
        """The numbers that SentencePiece gives the pieces of a text."""
        tokens = self.tokenizer.tokenize(text, specials_in_text=False)
        return [token.spm_id for token in tokens if token.spm_id is not None]

    def cases(self, make: Callable[[Sample], Case]) -> list[Case]:
        """A case for each sample."""
        return [make(sample) for sample in self.samples]


@cache
def material() -> Material:
    """Loads the bundled checkpoint and runs it once on each sample."""
    tokenizer = XLMRobertaTokenizer.from_pretrained("xlmr-tiny")
    model = XLMRobertaForMaskedLM.from_pretrained("xlmr-tiny").double()
    texts = {"three texts of unequal length": TEXTS, "one text": TEXTS[1:2]}
    samples: list[Sample] = []
    for about, several in texts.items():
        batch = tokenizer(several)
        with torch.no_grad(), model.capture("**") as seen:
            model(**batch)
        samples.append(Sample(about, batch.input_ids, batch.attention_mask.bool(), dict(seen)))
    return Material(tokenizer, model.config, model, tuple(samples))
