"""A whole pre-training run: the model learns, a run resumes, and the package loads what was written."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_language import NOUNS

from xlmr_core import FillMask, XLMRobertaForMaskedLM
from xlmr_core.training import PretrainSettings, loop, pretrain
from xlmr_core.training.optimization import parameter_groups

SMALL = PretrainSettings(
    vocabulary_size=55,
    hidden_size=24,
    layers=2,
    heads=2,
    intermediate_size=40,
    dropout=0.1,
    max_tokens=24,
    short_tokens=12,
    batch_size=8,
    steps=12,
    warmup_steps=3,
)

FOREIGN = (
    "sentencepiece.bpe.model",
    "training_state.pt",
    "model.safetensors",
    "pytorch_model.bin",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "evaluation.json",
    "dict.txt",
)


def test_the_model_learns_from_context(corpus_files: list[Path], held_out_files: list[Path], tmp_path: Path) -> None:
    settings = replace(SMALL, steps=400, warmup_steps=20, learning_rate=5e-3, batch_size=16, dropout=0.0)
    results = pretrain(corpus_files, tmp_path, settings, held_out_files=held_out_files)
    for language, figures in results.items():
        assert figures.accuracy > 2 * figures.unigram_accuracy, language
        assert figures.accuracy > 0.6, language  # a fair share of the masked pieces cannot be known
    assert json.loads((tmp_path / "evaluation.json").read_text())["en"]["accuracy"] == results["en"].accuracy

    fill = FillMask.from_pretrained(tmp_path)
    assert fill("<mask> sees dog.", top_k=1)[0][0].token_str in NOUNS["en"]


def test_a_resumed_run_ends_with_the_same_bits(
    corpus_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(corpus_files, tmp_path / "whole", SMALL)

    take_step = loop.train_step

    def die_at_step_9(*arguments: Any) -> tuple[float, int]:
        if arguments[-1] == 9:
            raise KeyboardInterrupt
        return take_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", die_at_step_9)
        with pytest.raises(KeyboardInterrupt):
            pretrain(corpus_files, tmp_path / "killed", SMALL, save_every=4)
    assert torch.load(tmp_path / "killed" / "training_state.pt", weights_only=True)["step"] == 8
    pretrain(corpus_files, tmp_path / "killed", SMALL, save_every=4)

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_model_is_trained_further(corpus_files: list[Path], held_out_files: list[Path], tmp_path: Path) -> None:
    pretrain(corpus_files, tmp_path / "first", replace(SMALL, steps=60, learning_rate=5e-3))
    before = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "first")

    unchanged = replace(
        SMALL, hidden_size=8, heads=1, layers=1, steps=1, warmup_steps=0, learning_rate=0.0
    )  # sizes are the model's
    same = pretrain(corpus_files, tmp_path / "same", unchanged, model=tmp_path / "first", held_out_files=held_out_files)
    pieces = [(tmp_path / name / "sentencepiece.bpe.model").read_bytes() for name in ("first", "same")]
    assert pieces[0] == pieces[1]
    after = XLMRobertaForMaskedLM.from_pretrained(tmp_path / "same")
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())

    settings = replace(SMALL, steps=60, learning_rate=5e-3, dropout=0.2)
    better = pretrain(
        corpus_files, tmp_path / "second", settings, model=tmp_path / "first", held_out_files=held_out_files
    )
    assert all(better[language].loss < same[language].loss for language in same)
    assert XLMRobertaForMaskedLM.from_pretrained(tmp_path / "second").config.hidden_dropout_prob == 0.2
    with pytest.raises(ValueError, match="holds a run with other model"):
        pretrain(corpus_files, tmp_path / "second", settings, model=tmp_path / "same")


def test_a_row_longer_than_the_model_is_refused(corpus_files: list[Path], tmp_path: Path) -> None:
    settings = replace(SMALL, max_tokens=129)
    with pytest.raises(ValueError, match="max_tokens must be at most 128, the positions of the model, not 129"):
        pretrain(corpus_files, tmp_path / "new", settings, model="xlmr-tiny")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_killed_by_the_system_at_any_moment_ends_with_the_same_bits(
    corpus_files: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "xlmr_core", "pretrain", *map(str, corpus_files), "--save-every", "2"]
    for name, value in asdict(SMALL).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True)
    kills = 0
    for wait in (2.0, 2.6, 3.2, 3.8, 4.4, 60.0):
        with subprocess.Popen([*command, "-o", str(tmp_path / "killed")], stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    assert kills > 1
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_weights_can_be_written_in_half_precision_and_a_finished_run_rewritten(
    corpus_files: list[Path], held_out_files: list[Path], tmp_path: Path
) -> None:
    full = pretrain(corpus_files, tmp_path, SMALL, held_out_files=held_out_files)
    whole = load_file(tmp_path / "model.safetensors")
    half = pretrain(corpus_files, tmp_path, SMALL, held_out_files=held_out_files, save_dtype=torch.float16)
    halved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(halved[key], whole[key].half()) for key in whole)
    assert half["en"].loss == pytest.approx(full["en"].loss, abs=1e-3)


def test_the_learning_rate_rises_during_the_warm_up_and_then_falls() -> None:
    settings = replace(SMALL, steps=110, warmup_steps=10, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.01)


def test_short_sequences_come_first_with_as_many_tokens_a_step() -> None:
    settings = replace(SMALL, steps=10, short_share=0.8)
    assert [settings.batch_shape_at(step) for step in range(10)] == [(16, 12)] * 8 + [(8, 24)] * 2


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = XLMRobertaForMaskedLM(SMALL.config(57))
    decayed, spared = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(name.endswith("bias") or "norm" in name for name in (names[id(p)] for p in spared["params"]))
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_a_folder_of_another_run_is_refused_and_unchanged(corpus_files: list[Path], tmp_path: Path) -> None:
    pretrain(corpus_files, tmp_path, SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="other learning_rate, seed"):
        pretrain(corpus_files, tmp_path, replace(SMALL, learning_rate=1e-4, seed=5))
    with pytest.raises(ValueError, match="other corpus files"):
        pretrain(corpus_files[:1], tmp_path, SMALL)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_diverging_loss_stops_the_run(corpus_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower learning rate"):
        pretrain(corpus_files, tmp_path, replace(SMALL, learning_rate=1e30, steps=30))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"warmup_steps": 13}, r"between 0 and steps \(12\), not 13"),
        ({"mask_probability": 1.0}, "mask_probability must lie between 0 and 1"),
        ({"short_tokens": 25}, r"short_tokens must lie between 3 and max_tokens \(24\), not 25"),
        ({"short_tokens": 2}, "short_tokens must lie between 3 and"),
        ({"heads": 5}, r"hidden_size must be a multiple of heads \(5\), not 24"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must lie between 0 and 1, not 1.0"),
        ({"learning_rate": float("nan")}, "learning_rate must lie between 0 and 1e\\+30, not nan"),
        ({"learning_rate": 3e38}, "learning_rate must lie between 0 and 1e\\+30, not 3e"),
        ({"weight_decay": -0.1}, "weight_decay must lie between 0 and 1e"),
        ({"weight_decay": 1e308}, "weight_decay must lie between 0 and 1e"),
        ({"language_exponent": 400.0}, "language_exponent must lie between 0 and 4, not 400"),
        ({"hidden_size": 2**40}, "hidden_size must be at most 16777216"),
        ({"max_tokens": 2**40}, "max_tokens must be at most 16777216"),
        ({"seed": -1}, "seed must lie between 0 and 4294967295, not -1"),
        ({"short_share": -0.1}, "short_share must lie between 0 and 1"),
        ({"precision": "int8"}, "'int8' is neither"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (12, 0), (400, 20), (2_000, 100), (10_000, 500), (14_000, 500), (100_000, 500)]
)
def test_the_default_warm_up_depends_on_the_steps(steps: int, warmup: int) -> None:
    """The bundled checkpoint was trained with 14,000 steps, of which 500 were the warm-up."""
    settings = replace(SMALL, steps=steps, warmup_steps=None)
    assert settings.warmup == warmup
    assert settings == PretrainSettings(**{**asdict(SMALL), "steps": steps, "warmup_steps": None})
    assert replace(SMALL, steps=20_000, warmup_steps=1000).warmup == 1000


def test_the_record_holds_the_number_of_warm_up_steps(corpus_files: list[Path], tmp_path: Path) -> None:
    """So that a run continues when the number is given, and does not when a later version has another default."""
    settings = replace(SMALL, steps=40, warmup_steps=None)
    pretrain(corpus_files, tmp_path, settings)
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["warmup_steps"] == 2
    pretrain(corpus_files, tmp_path, replace(settings, warmup_steps=2))


def test_a_run_that_cannot_begin_leaves_no_folder(corpus_files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot train a vocabulary of 5000 pieces"):
        pretrain(corpus_files, tmp_path / "out", replace(SMALL, vocabulary_size=5000))
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_saved_step_is_replaced(
    corpus_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = loop.write_bytes

    def die(*arguments: Any) -> None:
        if arguments[0] != tmp_path / "out" / "run.json":
            raise KeyboardInterrupt
        write(*arguments)

    other = replace(SMALL, vocabulary_size=50, seed=2)
    for died_at, settings in (("write_bytes", SMALL), ("train_step", SMALL), ("write_bytes", other)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, died_at, die)
            with pytest.raises(KeyboardInterrupt):
                pretrain(corpus_files, tmp_path / "out", settings)
        assert (tmp_path / "out" / "run.json").exists()
        assert (tmp_path / "out" / "sentencepiece.bpe.model").exists() == (died_at == "train_step")

    pretrain(corpus_files, tmp_path / "out", other)
    pretrain(corpus_files, tmp_path / "fresh", other)
    for name in ("run.json", "sentencepiece.bpe.model", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", '{"project": "another tool\'s"}', "run.json is not the record of a run"),
        ("run.json", "precious", r"run.json: it is not JSON \(.*\)\. It is not the record of a run"),
        ("run.json", "[" * 100_000, "is nested too deeply.*not the record of a run"),
        ("run.json", '{"settings": [], "corpus": []}', "run.json is not the record of a run"),
        ("run.json", '{"settings": {}}', "run.json is not the record of a run"),
        *((name, "precious", f"holds files that no run of this command writes there: {name}") for name in FOREIGN),
    ],
)
def test_a_folder_with_files_of_another_program_is_refused_and_unchanged(
    name: str, content: str, message: str, corpus_files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        pretrain(corpus_files, tmp_path, SMALL)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


@pytest.mark.gpu
def test_it_learns_on_a_gpu(corpus_files: list[Path], held_out_files: list[Path], tmp_path: Path) -> None:
    settings = replace(SMALL, steps=400, warmup_steps=20, learning_rate=5e-3, batch_size=16, dropout=0.0)
    results = pretrain(corpus_files, tmp_path, settings, held_out_files=held_out_files, device="cuda")
    assert all(figures.accuracy > 2 * figures.unigram_accuracy for figures in results.values())
