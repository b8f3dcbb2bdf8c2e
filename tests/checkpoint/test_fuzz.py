"""Coverage-guided fuzzing: fuzz.py in a process of its own, for a stated number of inputs to each reader.

More inputs, other seeds: `python tests/checkpoint/fuzz.py TARGET RUNS SEED FOLDER`, with an empty FOLDER.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint import published

SCRIPT = Path(__file__).with_name("fuzz.py")
SEED = 1
RUNS = {  # inputs
    "safetensors": 20_000,
    "header": 20_000,
    "index": 20_000,
    "old pickle": 20_000,
    "zip": 20_000,
    "zipped pickle": 20_000,
    "tar": 20_000,
    "modules": 20_000,
    "config": 20_000,
    "checkpoint": 2_000,  # a model is built for each, without memory
    "keys": 4_000,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris is not installed: pip install -e '.[fuzz]' (it has wheels for Linux)",
    ),
]


@pytest.mark.parametrize("target", RUNS)
def test_any_bytes_are_read_or_refused(target: str, tmp_path: Path) -> None:
    """No other error, no crash, nothing that is run, nothing written elsewhere, no input that takes half a minute."""
    command = [sys.executable, str(SCRIPT), target, str(RUNS[target]), str(SEED), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=published.child_env())
    assert run.returncode == 0, run.stdout[-2_000:] + run.stderr[-4_000:]
    seen = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    print(f"\n{target}: {seen}")
    assert seen["runs"] == seen["refused"] + seen["read"] == RUNS[target]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("os.system('true')", "HARM: os.system"),
        ("open('{elsewhere}', 'w')", "HARM: open"),
        ("Path('{elsewhere}').mkdir()", "HARM: os.mkdir"),
        ("dict()['a']", "KeyError"),
    ],
)
def test_the_watch_sees_harm(harm: str, told: str, tmp_path: Path) -> None:
    """The same script, with a reader that does what none may do once it is given anything."""
    harm = harm.format(elsewhere=tmp_path / "elsewhere")
    script = SCRIPT.read_text(encoding="utf-8").replace('    """A config.json."""\n', f"    {harm}\n", 1)
    assert harm in script
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    command = [sys.executable, str(tmp_path / "script.py"), "config", "10", "1", str(tmp_path / "folder")]
    run = subprocess.run(command, capture_output=True, text=True, env=published.child_env())
    assert run.returncode != 0
    assert told in run.stdout + run.stderr
    assert not (tmp_path / "elsewhere").exists()
