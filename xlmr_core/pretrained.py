"""What every model class can do beside computing: be read and written, be looked into, be initialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self, Unpack  # typing's own is from Python 3.11

from xlmr_core.checkpoint import loading
from xlmr_core.checkpoint.mapping import LoadReport
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.hub_options import HubOptions
from xlmr_core.inputs import check_call
from xlmr_core.kernels import AttentionKind
from xlmr_core.spec import CLASSES, ModelSpec, Tap
from xlmr_core.taps import Captured, Change, capture, intervene, taps_of


class PretrainedModel(nn.Module):
    """The base of every model class. Each says in its `spec` what it has, and everything else reads that."""

    spec: ClassVar[ModelSpec]
    config: XLMRobertaConfig
    load_report: LoadReport | None = None  # set by from_pretrained: what became of every key, and why

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "spec" in vars(cls):
            CLASSES.append(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `forward`. Raises TypeError for an argument that only transformers takes, and names what to do instead."""
        check_call(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        attention: AttentionKind = "eager",
        dtype: torch.dtype | None = torch.float32,
        device: torch.device | str = "cpu",
        new_head: bool = False,
        labels: Sequence[str] | None = None,
        **hub: Unpack[HubOptions],
    ) -> Self:
        """The model in `source`, in eval mode: a hub id, a folder, a weights file, "xlmr-tiny", or a catalogue's name.

        `dtype` None keeps the dtype of the file. Raises `CheckpointError` with the cause and the way out: nothing
        is ever left random, and a checkpoint without this class's head is refused, unless `new_head` asks for a fresh
        one to train (the report says so), with a class for each of `labels`, if given. A head of another class is
        dropped, and the report says that, too.
        """
        return loading.load_pretrained(
            cls,
            source,
            attention=attention,
            dtype=dtype,
            device=device,
            new_head=new_head,
            labels=labels,
            **hub,
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Writes config.json and model.safetensors under the published key names: transformers loads them back."""
        loading.save_pretrained(self, folder)

    def taps(self) -> list[Tap]:
        """Every internal tensor that has a name, in reading order: `name`, `shape`, `meaning`."""
        return taps_of(self)

    def capture(self, *patterns: str, partial: bool = False) -> AbstractContextManager[Captured]:
        """`with model.capture("layers.*.attention.probs") as acts: ...`; see `xlmr_core.taps.capture`."""
        return capture(self, *patterns, partial=partial)

    def intervene(self, changes: Mapping[str, Change]) -> AbstractContextManager[None]:
        """`with model.intervene({"layers.3.mid": function}): ...`; see `xlmr_core.taps.intervene`."""
        return intervene(self, changes)

    def initialize(self) -> None:
        """Fresh weights for training: normal with `initializer_range`, zero biases, unit norms, zero rows for pad."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():  # last: the word table may also be a decoder's weight
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
