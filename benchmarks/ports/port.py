"""What the scripts of the ports share: the request that the runner wrote, and the answer that it reads.

python with_NAME.py FOLDER REQUEST OUT OPTION: FOLDER holds the checkpoint, REQUEST is a JSON file, OUT an empty folder.
Only NumPy is needed here.
"""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Texts = Sequence[str]
Ids = Sequence[Sequence[int]]


def padded(rows: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as a batch that is padded on the right, and its mask: both (B, S)."""
    width = max(map(len, rows))
    ids = np.array([[*row, *[1] * (width - len(row))] for row in rows], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    return ids, mask


def pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:  # (B, S, H), (B, S) -> (B, H)
    """The mean of the real tokens, of length 1: what the test checkpoints define, for ports that do not pool."""
    mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def layer_taps(states: Sequence[Any]) -> dict[str, Any]:
    """Hidden states under the names of the taps: the embeddings, then the output of each layer."""
    return {"embeddings.output": states[0]} | {f"layers.{i}.output": state for i, state in enumerate(states[1:])}


def answer(
    load: Callable[[Path, str], Any],
    *,
    ids: Callable[[Any, Texts], Ids] | None = None,
    taps: Callable[[Any, np.ndarray, np.ndarray], dict[str, Any]] | None = None,
    vectors: Callable[[Any, Texts], Any] | None = None,
) -> None:
    """Computes what the port can give, and writes it. What fails leaves its error in the answer.

    Args:
        load: From the folder and the option to the port.
        ids: The ids of texts, special tokens included.
        taps: From ids and mask, both (B, S), to the tensors by the names of their taps.
        vectors: The vectors of texts that run together.
    """
    folder, request_file, out, option = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    request = json.loads(request_file.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"errors": {}}
    dump: dict[str, np.ndarray] = {}

    def attempt(part: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # of any library
            traceback.print_exc()
            found["errors"][part] = f"{type(error).__name__}: {error}"
            return None

    port = attempt("load", lambda: load(folder, option))
    if port is not None and ids:
        found["ids"] = attempt("ids", lambda: [[int(id) for id in row] for row in ids(port, request["texts"])])
    if port is not None and taps:
        batch = (np.array(request["input_ids"]), np.array(request["attention_mask"]))
        dump |= attempt("taps", lambda: taps(port, *batch)) or {}
    if port is not None and vectors:
        rows = attempt("vectors", lambda: [np.asarray(vectors(port, texts)) for texts in request["batches"]])
        if rows is not None:
            found["vectors"] = np.concatenate(rows).astype(float).tolist()
    found["taps"] = list(dump)
    np.savez(out / "dump.npz", **{name: np.asarray(tensor, dtype=np.float32) for name, tensor in dump.items()})
    (out / "answer.json").write_text(json.dumps(found), encoding="utf-8")
