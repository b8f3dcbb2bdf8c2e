"""The base of every model class: loading and saving, taps, and fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any, ClassVar, Generic

import torch
from torch import nn
from typing_extensions import Self, TypeVar, Unpack  # those of typing are from Python 3.11 and 3.13

from xlmr_core.checkpoint import loading
from xlmr_core.checkpoint.mapping import LoadReport
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.hub_options import HubOptions
from xlmr_core.kernels import AttentionKind
from xlmr_core.spec import CLASSES, ModelSpec, Tap
from xlmr_core.taps import Captured, Change, capture, intervene, taps_of
from xlmr_core.transformers_arguments import check_call

Output = TypeVar("Output", default=Any)  # the dataclass that the model's `forward` returns


class PretrainedModel(nn.Module, Generic[Output]):
    """The base of every model class.

    Attributes:
        spec: the description of the class: what it adds to the encoder. Everything that serves models reads it.
        config: sizes and numerics.
        load_report: set by `from_pretrained`: the status of every key, and why.
    """

    spec: ClassVar[ModelSpec]
    config: XLMRobertaConfig
    load_report: LoadReport | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "spec" in vars(cls):
            CLASSES.append(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        """As `forward`.

        Raises:
            TypeError: an argument is one that only transformers takes. The message says what to do instead.
        """
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
        """The model in `source`, in eval mode.

        A head of another class in the checkpoint is dropped, and `load_report` says so. No weight is ever left random
        without being asked for.

        Args:
            source: a hub id, a folder, a weights file, "xlmr-tiny", or a name of the catalogue.
            attention: the attention kernel, "eager" or "sdpa".
            dtype: dtype of the model. None keeps that of the file.
            device: where the model is put.
            new_head: whether a head that the checkpoint lacks is made fresh, to be trained.
            labels: the names of the classes of a new head.
            **hub: see `HubOptions`.

        Raises:
            CheckpointError: the checkpoint cannot be found or read, or does not have exactly the tensors of this class.
                The message names the cause and what to do.
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
        """Writes config.json and model.safetensors with the published key names: transformers loads them too."""
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
