"""The command `xlmr`: its help, its errors, and fill-mask, tokenize, inspect and pretrain from the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from xlmr_core import XLMRobertaForSequenceClassification, __version__
from xlmr_core.cli import COMMANDS, main


def xlmr(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def test_help_lists_every_command_and_imports_none() -> None:
    script = (
        "import sys; from xlmr_core.cli import main; main(['--help'], standalone_mode=False); "
        "print([name for name in sys.modules if name.startswith('xlmr_core.cli.')])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for name, line in COMMANDS.items():
        assert name in run.stdout
        assert line[:40] in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


def test_an_interrupt_while_a_command_starts_prints_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch takes a second, during which Ctrl-C can come."""

    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("xlmr_core.cli.importlib.import_module", interrupted)
    result = xlmr("inspect")
    assert (result.exit_code, result.output.strip()) == (130, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = xlmr(name, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_every_option_of_pretrain_has_a_help_text() -> None:
    from xlmr_core.cli.pretrain import command

    assert [option.name for option in command.params if isinstance(option, click.Option) and not option.help] == []


def test_version() -> None:
    assert __version__ in xlmr("--version").stdout


def test_an_unknown_command_is_named() -> None:
    result = xlmr("fil-mask", "<mask>")
    assert result.exit_code == 2
    assert "Error: there is no command 'fil-mask': did you mean fill-mask?" in result.stderr
    nothing_near = xlmr("qqq")
    assert nothing_near.exit_code == 2
    assert nothing_near.stderr.endswith("Error: there is no command 'qqq'\n")
    assert "No such option" in xlmr("--qqq").stderr


class TestFillMask:
    def test_targets_and_masks_filled_together(self) -> None:
        text = "I do <mask> know <mask> to do."
        ranked = xlmr("fill-mask", text, "--model", "xlmr-tiny", "--target", "not", "--target", "what", "--json")
        words = [[filling["token_str"] for filling in mask] for mask in json.loads(ranked.stdout)["fillings"]]
        assert [sorted(mask) for mask in words] == 2 * [["not", "what"]]
        together = xlmr("fill-mask", text, "--model", "xlmr-tiny", "--joint", "--top-k", 1, "--json")
        [[first], [second]] = json.loads(together.stdout)["fillings"]
        assert first["sequence"] == second["sequence"]
        wrong = xlmr("fill-mask", text, "--model", "xlmr-tiny", "--target", "unforgettable")
        assert "Error: the target 'unforgettable' is not one piece of the vocabulary; its pieces are" in wrong.stderr

    def test_it_prints_the_text_and_its_predictions(self, toy_checkpoint: Path) -> None:
        result = xlmr("fill-mask", "the cat <mask> the dog", "--model", toy_checkpoint, "--top-k", "3")
        assert result.exit_code == 0
        first, *answers = result.stdout.splitlines()
        assert first == "the cat <mask> the dog"
        assert len(answers) == 3
        assert all("%" in answer and "the cat" in answer for answer in answers)
        assert result.stderr == ""

    def test_json_has_the_field_names_of_the_transformers_pipeline(self, toy_checkpoint: Path) -> None:
        result = xlmr("fill-mask", "<mask> sees <mask>", "--model", toy_checkpoint, "--json", "--top-k", "2")
        [line] = result.stdout.splitlines()
        answer = json.loads(line)
        assert answer["text"] == "<mask> sees <mask>"
        assert [len(mask) for mask in answer["fillings"]] == [2, 2]
        assert set(answer["fillings"][0][0]) == {"score", "token", "token_str", "sequence"}

    def test_lines_of_standard_input_are_answered_in_order(self, toy_checkpoint: Path) -> None:
        texts = [f"<mask> {word}" for word in ("cat", "dog", "bird", "кіт", "पक्षी")]
        result = xlmr(
            "fill-mask",
            "--model",
            toy_checkpoint,
            "--json",
            "--batch-tokens",
            20,
            stdin="".join(f"{t}\n" for t in texts),
        )
        assert result.exit_code == 0
        assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == texts

    def test_the_other_texts_are_answered_beside_a_bad_one(self, toy_checkpoint: Path) -> None:
        texts = ["<mask> cat", "no mask", "", "the " * 60 + "<mask>", "dog <mask>"]
        result = xlmr("fill-mask", "--model", toy_checkpoint, "--json", stdin="\n".join(texts))
        assert result.exit_code == 1
        assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [texts[0], texts[4]]
        errors = result.stderr.splitlines()
        places = [f"Error: line {number} of standard input" for number in (2, 3, 4)]
        assert [error[: len(places[0])] for error in errors] == places
        too_long = (
            "the text has 183 tokens, special ones included; at most 20 fit: pass truncation=True (--truncate on the "
            "command line), or split the text"
        )
        assert errors[2] == f"{places[2]}: {too_long}"

    def test_a_long_text_can_be_cut(self, toy_checkpoint: Path) -> None:
        result = xlmr("fill-mask", "<mask> " + "the " * 60, "--model", toy_checkpoint, "--truncate")
        assert result.exit_code == 0

        lost = xlmr("fill-mask", "the " * 60 + "<mask>", "--model", toy_checkpoint, "--truncate")
        assert lost.exit_code == 1
        assert "a <mask> of 'the the" in lost.stderr
        assert "was cut off" in lost.stderr

    def test_bytes_that_are_not_utf_8_are_an_error(self, toy_checkpoint: Path) -> None:
        as_argument = xlmr("fill-mask", "<mask> \udcff", "--model", toy_checkpoint)  # as Python gives it
        assert as_argument.exit_code == 1
        assert as_argument.stderr.startswith("Error: text 1: byte 0xff is not UTF-8; convert it to UTF-8, for example")
        lines = "<mask> cat\nle chat a mang\xe9 <mask>\n<mask> кіт\r\n".encode().replace(b"\xc3\xa9", b"\xe9")
        result = xlmr("fill-mask", "--model", toy_checkpoint, "--json", stdin=lines)
        assert result.exit_code == 1
        assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["<mask> cat", "<mask> кіт"]
        [error] = result.stderr.splitlines()
        assert error.startswith("Error: line 2 of standard input: byte 0xe9 is not UTF-8; convert it")

    def test_a_line_is_answered_before_the_next_one_comes(self, toy_checkpoint: Path) -> None:
        command = [sys.executable, "-m", "xlmr_core", "fill-mask", "--json", "--model", str(toy_checkpoint)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for text in ("<mask> cat", "<mask> dog"):
                process.stdin.write(f"{text}\n".encode())
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["text"] == text
            process.stdin.close()
            assert process.wait() == 0

    @pytest.mark.parametrize("command", ["fill-mask", "tokenize"])
    def test_closed_standard_input_is_an_error(self, command: str, toy_checkpoint: Path) -> None:
        line = f'"{sys.executable}" -m xlmr_core {command} --model "{toy_checkpoint}" <&-'
        run = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert run.stderr == (
            "Error: standard input is closed: give the texts as arguments, or as the lines of a file (< FILE)\n"
        )

    @pytest.mark.parametrize("command", ["fill-mask", "tokenize"])
    def test_a_line_that_is_too_long_is_an_error(self, command: str, toy_checkpoint: Path) -> None:
        lines = b"<mask> cat\n" + b"\xe9 <mask>" * 2**18 + b"\n<mask> dog\n"
        result = xlmr(command, "--model", toy_checkpoint, stdin=lines)
        assert result.exit_code == 1
        assert result.stderr == "Error: line 2 of standard input: the line is longer than 1048576 bytes; split it\n"
        assert ("<mask> dog" in result.stdout) == (command == "fill-mask")  # tokenize stops at the first error

    def test_pad_in_a_text_is_an_error_with_a_way_out(self, toy_checkpoint: Path) -> None:
        result = xlmr("fill-mask", "the <pad> <mask>", "<mask> cat", "--model", toy_checkpoint)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: text 1: 'the <pad> <mask>' contains <pad>, which stands for no text. ")
        assert "--plain" in result.stderr
        assert result.stdout.startswith("<mask> cat\n")
        plain = xlmr("fill-mask", "the <pad> <mask>", "--plain", "--model", toy_checkpoint)
        assert plain.exit_code == 0
        assert plain.stdout.startswith("the <pad> <mask>\n")

    @pytest.mark.parametrize("command", ["fill-mask", "tokenize"])
    def test_a_message_says_that_no_text_was_given(self, command: str, toy_checkpoint: Path) -> None:
        result = xlmr(command, "--model", toy_checkpoint, stdin="")
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no text was given\n")

    def test_the_error_for_a_checkpoint_with_another_head_names_the_missing_group(
        self, toy_checkpoint: Path, tmp_path: Path
    ) -> None:
        XLMRobertaForSequenceClassification.from_pretrained(toy_checkpoint, new_head=True).save_pretrained(tmp_path)
        shutil.copy(toy_checkpoint / "sentencepiece.bpe.model", tmp_path)
        result = xlmr("fill-mask", "<mask>", "--model", tmp_path)
        assert result.exit_code == 1
        assert "needs the group lm_head" in result.stderr
        assert "`xlmr inspect` lists what is" in result.stderr
        assert "in Python, new_head=True" in result.stderr

    def test_a_missing_model_is_one_line_and_debug_shows_the_traceback(self, tmp_path: Path) -> None:
        result = xlmr("fill-mask", "<mask>", "--model", tmp_path / "nothing")
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert str(tmp_path / "nothing") in result.stderr
        assert "Traceback" not in result.stderr
        assert isinstance(xlmr("--debug", "fill-mask", "<mask>", "--model", tmp_path / "nothing").exception, ValueError)


@pytest.mark.parametrize("text", ["[]", "null", "5", "", "[" * 100_000, '{"architectures": [1]}'])
@pytest.mark.parametrize("command", ["tokenize", "fill-mask", "inspect"])
def test_every_command_names_a_config_that_is_not_valid(
    command: str, text: str, toy_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy_checkpoint, tmp_path / "copy")
    (folder / "config.json").write_text(text)
    result = xlmr(command, folder) if command == "inspect" else xlmr(command, "text", "--model", folder)
    assert result.exit_code == 1
    assert f"Error: {folder / 'config.json'}: " in result.stderr


def test_tokenize_shows_each_step(toy_checkpoint: Path) -> None:
    result = xlmr("tokenize", "the <mask> sees", "кіт", "--model", toy_checkpoint)
    assert result.exit_code == 0
    for expected in ("normalised", "▁", "<mask>", "кіт", "</s>"):
        assert expected in result.stdout
    bad = xlmr("tokenize", "--model", toy_checkpoint, stdin=b"the cat\n\xff\n")
    assert bad.exit_code == 1
    assert "Error: line 2 of standard input: byte 0xff is not UTF-8" in bad.stderr
    plain = xlmr("tokenize", "<mask>", "--plain", "--model", toy_checkpoint)
    assert "41" not in plain.stdout.split()  # the id of <mask>


def test_inspect_shows_the_status_of_every_key(toy_checkpoint: Path) -> None:
    result = xlmr("inspect", toy_checkpoint)
    assert result.exit_code == 0
    for expected in ("hidden_size=24", "roberta.encoder.layer.1.attention.self.query.weight", "float32", "tied"):
        assert expected in result.stdout


class TestACheckpointWithNaN:
    @pytest.fixture
    def damaged(self, toy_checkpoint: Path, tmp_path: Path) -> Path:
        shutil.copytree(toy_checkpoint, tmp_path / "damaged")
        tensors = load_file(tmp_path / "damaged" / "model.safetensors")
        tensors["lm_head.dense.bias"][3] = float("nan")
        save_file(tensors, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / "damaged"

    def test_inspect_values_finds_the_nan(self, damaged: Path) -> None:
        result = xlmr("inspect", damaged, "--values")
        assert result.exit_code == 1
        assert [line for line in result.stdout.splitlines() if "lm_head.dense.bias" in line and "nan" in line.lower()]
        assert xlmr("inspect", damaged).exit_code == 0  # it does not read the values

    def test_inspect_fails_if_loading_would(self, damaged: Path) -> None:
        tensors = load_file(damaged / "model.safetensors")
        tensors["lm_head.bais"] = tensors.pop("lm_head.bias")
        save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
        result = xlmr("inspect", damaged)
        assert result.exit_code == 1
        assert "PROBLEM" in result.stdout

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_fill_mask_fails(self, damaged: Path, options: list[str]) -> None:
        result = xlmr("fill-mask", "<mask> cat", "--model", damaged, *options)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert f"the model's logits are not finite: `xlmr inspect --values {damaged}" in result.stderr


class TestPretrain:
    def test_a_run_from_the_command_line_fills_masks(self, tmp_path: Path) -> None:
        from toy_language import sentences

        for folder, count in (("text", 200), ("unseen", 30)):
            (tmp_path / folder).mkdir()
            for language in ("en", "uk"):
                lines = sentences(language, count, seed=len(folder))
                (tmp_path / folder / f"{language}.txt").write_text("\n".join(lines), encoding="utf-8")
        result = xlmr(
            *("pretrain", tmp_path / "text" / "en.txt", tmp_path / "text" / "uk.txt", "-o", tmp_path / "model"),
            *("--held-out", tmp_path / "unseen", "--vocabulary-size", 50, "--hidden-size", 16, "--layers", 1),
            *(
                "--heads",
                2,
                "--intermediate-size",
                24,
                "--max-tokens",
                24,
                "--short-tokens",
                12,
                "--batch-size",
                4,
                "--steps",
                10,
            ),
            *("--warmup-steps", 2, "--device", "cpu"),
        )
        assert result.exit_code == 0, result.output
        assert "| uk |" in result.stdout
        assert "unigram baseline" in result.stdout
        assert xlmr("fill-mask", "кіт <mask> пес", "--model", tmp_path / "model").exit_code == 0

    def test_settings_that_cannot_work_leave_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "en.txt").write_text("a cat and a dog\n" * 20)
        run = ("pretrain", tmp_path / "en.txt", "-o", tmp_path / "model")
        small = ("--hidden-size", 8, "--layers", 1, "--heads", 2, "--intermediate-size", 8, "--device", "cpu")
        for wrong, message in (
            (("--heads", 3), "hidden_size must be a multiple of heads (3), not 256"),
            (("--warmup-steps", 9, "--steps", 8), "warmup_steps must lie between 0 and steps (8), not 9"),
            ((), "cannot train a vocabulary of 12000 pieces on this text: it is enough for"),
        ):
            result = xlmr(*run, *wrong)
            assert (result.exit_code, result.stdout) == (1, "")
            assert result.stderr.startswith(f"Error: {message}")
            assert not (tmp_path / "model").exists()
        result = xlmr(*run, *small, "--vocabulary-size", 12, "--steps", 8)  # fewer than the warm-up of a long run
        assert result.exit_code == 0, result.output

    def test_a_model_is_trained_further_with_its_own_sizes(self, tmp_path: Path) -> None:
        (tmp_path / "en.txt").write_text("a cat and a dog\n" * 20)
        run = ("pretrain", tmp_path / "en.txt", "-o", tmp_path / "model", "--model", "xlmr-tiny", "--device", "cpu")
        wrong = xlmr(*run, "--layers", 6)
        assert wrong.exit_code == 2
        assert "--layers does not go with --model: the sizes are those of xlmr-tiny" in wrong.stderr
        result = xlmr(*run, "--steps", 2, "--batch-size", 1, "--short-tokens", 16, "--max-tokens", 16)
        assert result.exit_code == 0, result.output
        assert xlmr("fill-mask", "a <mask> and a dog", "--model", tmp_path / "model").exit_code == 0

    @pytest.mark.parametrize("bad", ["text", "unseen"])
    def test_a_file_that_is_not_utf_8_is_named_before_anything_is_trained(self, bad: str, tmp_path: Path) -> None:
        for folder in ("text", "unseen"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "fr.txt").write_bytes(b"un chat\nmang\xe9\n" if folder == bad else b"un chat\n")
        result = xlmr(
            *("pretrain", tmp_path / "text" / "fr.txt", "-o", tmp_path / "model", "--held-out", tmp_path / "unseen")
        )
        assert result.exit_code == 1
        assert f"{tmp_path / bad / 'fr.txt'}, line 2: byte 0xe9 is not UTF-8; convert it" in result.stderr
        assert not (tmp_path / "model").exists()

    def test_a_diverging_loss_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "en.txt").write_text("a cat and a dog\n" * 20)
        small = ("--hidden-size", 8, "--layers", 1, "--heads", 2, "--intermediate-size", 8, "--device", "cpu")
        wild = ("--vocabulary-size", 12, "--steps", 30, "--learning-rate", 1e30)
        result = xlmr("pretrain", tmp_path / "en.txt", "-o", tmp_path / "model", *small, *wild)
        assert result.exit_code == 1
        assert "try a lower learning rate" in result.stderr.splitlines()[-1]

    def test_a_missing_held_out_file_is_named_before_anything_is_trained(self, tmp_path: Path) -> None:
        (tmp_path / "unseen").mkdir()
        (tmp_path / "en.txt").write_text("text\n")
        result = xlmr("pretrain", tmp_path / "en.txt", "-o", tmp_path / "model", "--held-out", tmp_path / "unseen")
        assert result.exit_code == 2
        assert "no held-out file" in result.stderr
        assert not (tmp_path / "model").exists()
