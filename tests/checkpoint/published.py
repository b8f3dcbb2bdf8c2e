"""Checkpoints as transformers writes them, tiny and random, and ways to damage them."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import reference
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from xlmr_core.config import XLMRobertaConfig

# transformers' two heads, in both norm placements: name -> (config, transformers' kind of class).
KINDS = {
    "masked-lm": (reference.POST_NORM, "ForMaskedLM"),
    "encoder": (reference.POST_NORM, "Model"),
    "masked-lm-xl": (reference.PRE_NORM, "ForMaskedLM"),
    "encoder-xl": (reference.PRE_NORM, "Model"),
}


def write(folder: Path, kind: str, *, tied: bool = True, **options: Any) -> Any:
    """transformers writes a random model of `kind` into `folder`, with `options` of its save_pretrained."""
    config, name = KINDS[kind]
    model = reference.build_reference(replace(config, tie_word_embeddings=tied), "eager", name).eval()
    reference.randomize(model)
    quietly(model.save_pretrained, folder, **options)
    return model


def quietly(function: Any, *arguments: Any, **options: Any) -> Any:
    """Calls transformers without its progress bars and log lines."""
    transformers.logging.set_verbosity_error()
    with contextlib.redirect_stderr(io.StringIO()):
        return function(*arguments, **options)


def our_keys(kind: str) -> dict[str, str]:
    """Our key -> the key in the file, from the tests' own table, not from the converter's."""
    config, name = KINDS[kind]
    if name == "Model":
        return reference.encoder_keys(config, pooler=True)
    keys = reference.masked_lm_keys(config) | {"lm_head.decoder.bias": "lm_head.bias"}
    del keys["lm_head.decoder.weight"]  # tied: not in the file
    return keys


def rewritten(source: Path, folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """The checkpoint of `source` again in `folder`, with other tensors and other fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def config_of(kind: str) -> XLMRobertaConfig:
    return KINDS[kind][0]


def child_env(**extra: str) -> dict[str, str]:
    """The environment of a child process that finds this copy of the package."""
    return os.environ | {"PYTHONPATH": str(Path(reference.__file__).parents[1])} | extra


def write_m3(folder: Path, encoder: Path) -> dict[str, dict[str, Tensor]]:
    """As published: the bare encoder, and two small pickles beside it."""
    copied(encoder, folder)
    random = torch.Generator().manual_seed(5)
    parts = {
        "sparse_linear": {"weight": torch.randn(1, 24, generator=random), "bias": torch.randn(1, generator=random)},
        "colbert_linear": {"weight": torch.randn(24, 24, generator=random), "bias": torch.randn(24, generator=random)},
    }
    for name, part in parts.items():
        torch.save(part, folder / f"{name}.pt")
    return parts
