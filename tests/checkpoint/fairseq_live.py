"""Runs fairseq's own code on a checkpoint, in a process of its own: see test_fairseq_live.py.

    python fairseq_live.py open FOLDER OUT        fairseq opens FOLDER as its users do
    python fairseq_live.py write FOLDER OUT ...   fairseq writes FOLDER/model.pt as its training does; options follow
    python fairseq_live.py reads FOLDER OUT       which settings the task, the model and its head ask for

`write` and `open` write to OUT the model's answers to the token ids of `batch`, and the keys of its state dict.
fairseq's source is imported unedited: `let_old_code_run` gives back what later Python, NumPy and torch took away.
"""

import argparse
import collections
import collections.abc
import contextlib
import dataclasses
import functools
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HEAD = "topic"


def let_old_code_run() -> None:
    """Python 3.11 forbids mutable defaults of dataclasses, 3.10 moved collections' classes, NumPy 2 dropped names."""
    source = inspect.getsource(dataclasses._get_field)
    refused = "f.default.__class__.__hash__ is None"
    exec(source.replace(refused, "isinstance(f.default, (list, dict, set))"), dataclasses.__dict__)
    for kind in (float, int, bool, object, complex, str):
        if kind.__name__ not in np.__dict__:
            setattr(np, kind.__name__, kind)
    for name in ("Mapping", "MutableMapping", "Iterable", "Sequence", "Callable"):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    torch.load = functools.partial(torch.load, weights_only=False)  # the files are our own
    for name in ("torchaudio", "editdistance"):  # imported for tasks that are not ours
        sys.modules.setdefault(name, Stub(name))


class Stub(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def batch(vocab_size: int) -> torch.Tensor:
    """Token ids of two texts, the second one shorter and padded."""
    ids = torch.randint(4, vocab_size, (2, 11), generator=torch.Generator().manual_seed(3))
    ids[:, 0], ids[0, 10], ids[1, 7], ids[1, 8:] = 0, 2, 2, 1
    return ids


def answers(model: Any) -> dict[str, Any]:
    """What the model answers, and its number of heads."""
    words = model.state_dict()
    (table,) = (tensor for key, tensor in words.items() if key.endswith("embed_tokens.weight"))
    tokens = batch(len(table))
    model.eval()
    with torch.no_grad():
        found: dict[str, Any] = {"input_ids": tokens, "logits": model(tokens)[0], "keys": list(words)}
        if len(model.classification_heads):
            found["classes"] = model(tokens, classification_head_name=HEAD)[0]
    return found


def opened(folder: Path) -> dict[str, Any]:
    from fairseq.models.roberta import XLMRModel

    hub = XLMRModel.from_pretrained(str(folder))
    return answers(hub.model) | {"encoded": hub.encode("Hello world.")}


def written(folder: Path, options: list[str]) -> dict[str, Any]:
    """A model with random weights, saved by fairseq's trainer. `--head` gives it a classification head as well."""
    from fairseq import options as parsing
    from fairseq import tasks
    from fairseq.trainer import Trainer

    has_head = "--head" in options
    task_options = ["--task", "multilingual_masked_lm", "--criterion", "masked_lm", "--optimizer", "adam"]
    schedule = ["--lr-scheduler", "fixed", "--lr", "0.001", "--cpu"]
    chosen = [option for option in options if option != "--head"]
    parser = parsing.get_training_parser()
    args = parsing.parse_args_and_arch(parser, [str(folder), *task_options, *schedule, *chosen])
    config, for_task, for_model, for_criterion = args, args, args, args
    with contextlib.suppress(ImportError):  # until 0.10 there are only args
        from fairseq.dataclass.utils import convert_namespace_to_omegaconf

        config = convert_namespace_to_omegaconf(args)
        for_task, for_model, for_criterion = config.task, config.model, config.criterion
    task = tasks.setup_task(for_task)
    model = task.build_model(for_model)
    if has_head:
        model.register_classification_head(HEAD, num_classes=4)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    trainer = Trainer(config, task, model, task.build_criterion(for_criterion))
    if hasattr(trainer, "consolidate_optimizer"):
        trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(folder / "model.pt"), {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}})
    return answers(model)


class Asked(argparse.Namespace):
    """Settings that remember which of them were asked for."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            vars(self).setdefault("_names", set()).add(name)
        return super().__getattribute__(name)


def settings_read(folder: Path) -> list[str]:
    """The settings of FOLDER/model.pt that fairseq asks for when it builds the model, with and without a default."""
    from fairseq.models.roberta import XLMRModel
    from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask

    args = Asked(**vars(torch.load(folder / "model.pt")["args"]), data=str(folder))
    task = MultiLingualMaskedLMTask.setup_task(args)
    vars(args)["_names"] = {"seed", "data"}
    model = XLMRModel.build_model(args, task)
    model.register_classification_head(HEAD, num_classes=2)
    return sorted(name for name in vars(args)["_names"] if name in vars(args))


if __name__ == "__main__":
    let_old_code_run()
    command, source, out, *rest = sys.argv[1:]
    commands = {"open": opened, "write": lambda folder: written(folder, rest), "reads": settings_read}
    torch.save(commands[command](Path(source)), out)
