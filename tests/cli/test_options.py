"""The options that several commands share: each command passes them on."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from xlmr_core.cli import main
from xlmr_core.tasks import Answer, Classify, Embed, FillMask, Rerank, Score, Tag
from xlmr_core.tokenizer import XLMRobertaTokenizer

# command: the function it calls, and the arguments that it needs
CALLS = {
    "inspect": ("inspect_checkpoint", ["org/model"]),
    "convert": ("convert", ["org/model", "out", "--to", "hf"]),
    "trim": ("trim", ["org/model", "out", "--keep", __file__]),
    "download": ("download", ["org/model"]),
    "fill-mask": (FillMask, ["<mask>", "--model", "org/model"]),
    "embed": (Embed, ["a", "--model", "org/model"]),
    "classify": (Classify, ["a", "--model", "org/model"]),
    "tag": (Tag, ["a", "--model", "org/model"]),
    "answer": (Answer, ["a", "b", "--model", "org/model"]),
    "rerank": (Rerank, ["a", "b", "--model", "org/model"]),
    "score": (Score, ["a", "--model", "org/model"]),
    "tokenize": (XLMRobertaTokenizer, ["a", "--model", "org/model"]),
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"revision": None, "cache_dir": None, "local_files_only": False}),
        (
            ["--revision", "v1", "--cache-dir", "there", "--offline"],
            {"revision": "v1", "cache_dir": "there", "local_files_only": True},
        ),
    ],
    ids=["none", "all"],
)
@pytest.mark.parametrize("command", CALLS)
def test_the_options_for_the_hub_are_passed_on(
    command: str, given: list[str], expected: dict[str, Any], monkeypatch: Any, tmp_path: Path
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def called(*arguments: Any, **options: Any) -> None:
        calls.append(((*arguments, options.pop("source", None)), options))
        raise ValueError("called")

    target, others = CALLS[command]
    if isinstance(target, str):
        monkeypatch.setattr(importlib.import_module(f"xlmr_core.cli.{command}"), target, called)
    else:
        monkeypatch.setattr(target, "from_pretrained", called)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [command, *others, *given])
    assert result.stderr.splitlines()[-1] == "Error: called"
    [(sources, options)] = calls
    assert "org/model" in sources
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("command", "option"), [(["parity", "diagnose"], "--seconds"), (["parity", "diagnose-vectors"], "--budget")]
)
def test_a_time_that_never_comes_is_refused(command: list[str], option: str) -> None:
    """Nothing is later than NaN: the search would not end."""
    result = CliRunner().invoke(main, [*command, __file__, __file__, "--model", "xlmr-tiny", option, "nan"])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}': nan is not a number of seconds: expected 0 or more" in result.stderr
