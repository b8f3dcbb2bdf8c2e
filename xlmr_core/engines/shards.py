"""Many input files, one output file for each, shared out among any number of processes.

torchrun, SLURM and job arrays start the processes; each calls `run_shards` with its rank. Processes do not talk to each
other. What a killed one has done is kept: start it again, also with another number of processes.
"""

import importlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

from xlmr_core.atomic import written_as
from xlmr_core.cli.result_file import is_complete
from xlmr_core.json_files import read_json_object

RECORD = "shards.json"
COMMANDS = ("embed", "classify", "tag", "answer", "rerank", "score")


def run_shards(
    command: str,
    inputs: Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    suffix: str,
    options: Sequence[str] = (),
    rank: int | None = None,
    world_size: int | None = None,
) -> list[Path]:
    """Runs `xlmr COMMAND --input FILE --output FILE` for this process's share of the files.

    Of the sorted files, the process takes number `rank` and every `world_size`-th after it. A finished output is left
    as it is, one that was begun is continued.

    Args:
        command: "embed", "classify", "tag", "answer", "rerank" or "score".
        inputs: All input files, the same in every process.
        output: The folder of the outputs: `in/a.jsonl` becomes `output/a.npy` with the suffix ".npy".
        suffix: Of the outputs.
        options: More options of the command, the same in every process: "--model", "BAAI/bge-m3". A process chooses
            its GPU by the environment variable CUDA_VISIBLE_DEVICES.
        rank: The number of this process, from 0. None: the environment variable RANK, which torchrun sets.
        world_size: The number of processes. None: the environment variable WORLD_SIZE.

    Returns:
        The outputs of this process.

    Raises:
        ValueError: Two inputs have the same name, the folder has the outputs of other options, another process works
            on the same file, or as the command.
        OSError: A file cannot be read or written.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    if command not in COMMANDS:
        raise ValueError(f"command {command!r} is not one of {', '.join(COMMANDS)}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie between 0 and world_size - 1 ({world_size - 1}), not be {rank}")
    files = sorted(map(Path, inputs))
    name, count = Counter(path.stem for path in files).most_common(1)[0] if files else ("", 0)
    if count > 1:
        raise ValueError(f"{count} inputs have the name {name}: their outputs would be one file. Rename them")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _record(folder / RECORD, {"command": command, "options": list(options)})

    xlmr = importlib.import_module(f"xlmr_core.cli.{command}").command
    outputs: list[Path] = []
    for path in files[rank::world_size]:
        outputs.append(folder / f"{path.stem}{suffix}")
        if not is_complete(outputs[-1]):
            arguments = ["--input", str(path), "--output", str(outputs[-1]), *options]
            xlmr.main(arguments, prog_name=f"xlmr {command}", standalone_mode=False)
    return outputs


def _record(path: Path, job: dict[str, object]) -> None:
    """Writes what the outputs depend on. Raises ValueError if the folder has the outputs of another job."""
    if not path.exists():
        with written_as(path) as temporary:
            temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    earlier = read_json_object(path)
    for name in job:
        if earlier.get(name) != job[name]:
            raise ValueError(
                f"{path.parent} has outputs of the {name} {earlier.get(name)}, but now it is {job[name]}: give the "
                "same, or choose an empty folder"
            )
