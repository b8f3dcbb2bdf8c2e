"""fairseq's running code opens what `convert` writes, and what its trainer writes is read here: the same logits.

Slow, and armed by XLMR_FAIRSEQ: the folders of fairseq's source (each with the package `fairseq` in it), separated as
in PATH. omegaconf, hydra-core, sacrebleu, bitarray, cython and scikit-learn must be importable.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from xlmr_core.checkpoint.convert import convert
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification

SOURCES = [Path(folder) for folder in os.environ.get("XLMR_FAIRSEQ", "").split(os.pathsep) if folder]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCES, reason="needs fairseq's source: set XLMR_FAIRSEQ to its folder"),
]
SCRIPT = Path(__file__).with_name("fairseq_live.py")
TOLERANCE = 5e-6  # float32, logits of about 1: two implementations sum in another order
TINY = ("--encoder-layers", "3", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32")
TINY += ("--encoder-attention-heads", "4", "--max-positions", "20", "--head")


def run(source: Path, command: str, folder: Path, *options: str) -> Any:
    """What fairseq_live.py answers under the fairseq in `source`, or the last line of its error."""
    out = folder / f"{command}.out"
    arguments = [sys.executable, str(SCRIPT), command, str(folder), str(out), *options]
    paths = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    return torch.load(out) if done.returncode == 0 else done.stderr[-2000:]


def difference(folder: Path, answers: Any) -> float:
    """The largest difference between our logits and fairseq's, over real tokens."""
    assert isinstance(answers, dict), answers
    ids = answers["input_ids"]
    real = ids != 1
    with torch.no_grad():
        logits = XLMRobertaForMaskedLM.from_pretrained(folder)(ids, real).logits
    return float((logits - answers["logits"])[real].abs().max())


@pytest.mark.parametrize("arch", ["roberta_base", "roberta_prenorm"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_its_trainer_writes_is_read(source: Path, arch: str, tmp_path: Path) -> None:
    if arch not in (source / "fairseq" / "models" / "roberta" / "model.py").read_text():
        pytest.skip("this version has no pre-norm model: see 0.12.2")
    (tmp_path / "dict.txt").write_text("".join(f"w{i} 1\n" for i in range(40)))
    answers = run(source, "write", tmp_path, "--arch", arch, *TINY)
    assert difference(tmp_path, answers) < TOLERANCE
    ids = answers["input_ids"]
    with torch.no_grad():
        classes = XLMRobertaForSequenceClassification.from_pretrained(tmp_path)(ids, ids != 1).logits
    assert float((classes - answers["classes"]).abs().max()) < TOLERANCE


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("to", ["fairseq", "fairseq-0.9", "fairseq-0.10", "fairseq-1.0"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_convert_writes_is_opened(
    source: Path, to: str, norm_first: bool, tmp_path: Path, toy_checkpoint: Path
) -> None:
    """By the versions that read the layout: each reads its own and the older ones."""
    code = (source / "fairseq" / "models" / "roberta" / "model.py").read_text()
    oldest = {"fairseq-0.10": '"encoder" + k', "fairseq-1.0": "layernorm_embedding"}
    if (norm_first and to != "fairseq") or oldest.get("fairseq-1.0" if norm_first else to, "") not in code:
        pytest.skip("this version does not read this layout: see a newer one")
    toy = XLMRobertaConfig.from_json(toy_checkpoint / "config.json")
    config = replace(toy, layer_norm_eps=1e-5, hidden_act="gelu", norm_first=norm_first)
    model = XLMRobertaForMaskedLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2)
            if "token_type" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path / "hf")
    tokenizer = "sentencepiece.bpe.model"
    (tmp_path / "hf" / tokenizer).write_bytes((toy_checkpoint / tokenizer).read_bytes())
    convert(tmp_path / "hf", tmp_path / "out", to)
    assert difference(tmp_path / "out", run(source, "open", tmp_path / "out")) < TOLERANCE
