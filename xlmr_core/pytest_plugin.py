"""A pytest plugin for those who port XLM-R: fixtures for a checkpoint and its trace, and `assert_parity`.

    # pyproject.toml of the port
    [tool.pytest.ini_options]
    xlmr_checkpoint = "FacebookAI/xlm-roberta-base"
    xlmr_texts = ["The capital of France is <mask>.", "Bonjour"]

    def test_port(xlmr_trace, assert_parity):
        assert_parity(my_port(xlmr_trace.inputs["input_ids"].numpy()), names=NAMES)

A test may name others: `@pytest.mark.xlmr(checkpoint="xlmr-tiny", texts=["Hello"])`, or `trace="golden.safetensors"`.
pytest imports this module at every start, so it imports torch and the rest of the package only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from xlmr_core.parity.compare import Comparison, Floors
    from xlmr_core.parity.matching import Matching
    from xlmr_core.parity.recording import Checkpoint
    from xlmr_core.parity.trace import Trace
    from xlmr_core.pretrained import PretrainedModel

DEFAULT_TEXTS = ("The capital of France is <mask>.", "Bonjour")
OPTIONS = ("checkpoint", "trace", "texts", "pairs", "taps")
CACHE = pytest.StashKey[dict[Any, Any]]()  # what is loaded or measured, once for a run of pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("xlmr_checkpoint", "XLM-R: a hub id, a folder or xlmr-tiny", default="xlmr-tiny")
    parser.addini("xlmr_trace", "XLM-R: a recorded trace; without one it is recorded when a test needs it", default="")
    parser.addini("xlmr_texts", "XLM-R: the texts to record, one a line", type="linelist", default=list(DEFAULT_TEXTS))
    parser.addini("xlmr_pairs", "XLM-R: the second text of each, as rerankers take them", type="linelist", default=[])
    parser.addini("xlmr_taps", "XLM-R: patterns of the taps to record", type="linelist", default=["**"])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"xlmr({', '.join(OPTIONS)}): what the fixtures of XLM-R work on in this test")
    config.stash[CACHE] = {}


@pytest.fixture
def xlmr_checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    """The checkpoint of the marker, else of the ini file: its `model` is ours, in float32 and eager attention."""
    return _checkpoint(request)


@pytest.fixture
def xlmr_model(xlmr_checkpoint: Checkpoint) -> PretrainedModel:
    """Our model of that checkpoint."""
    return xlmr_checkpoint.model


@pytest.fixture
def xlmr_trace(request: pytest.FixtureRequest) -> Trace:
    """The trace of the marker or the ini file, else one recorded now: `inputs`, `taps`, `provenance`."""
    return _trace(request)


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest) -> Callable[..., Comparison]:
    """`assert_parity(dump, names=None, taps=(), partial=False, dtype=None, explain=True)`: fails with the table.

    dump: a mapping of names to arrays (numpy, torch, anything numpy can read), or an .npz or .safetensors file,
    or an ONNX or OpenVINO model to run.
    names: a name map as in docs/trace-format.md, or the file that holds it; without one, and without a name of ours
    in the dump, the taps are recognised by their numbers. taps: patterns of the taps to compare
    ("layers.*.output", "**.probs"), by default all of the trace. partial: whether the dump may lack taps. dtype: what
    the port computes in ("bfloat16", "int8", "int8-per-channel"), by default the narrowest type that holds its numbers.
    explain: whether a failure is diagnosed, which runs the model a hundred times; int8 is not diagnosed.
    """

    def check(
        dump: Mapping[str, Any] | str | PathLike[str],
        *,
        names: Mapping[str, Any] | str | PathLike[str] | None = None,
        taps: Sequence[str] = (),
        partial: bool = False,
        dtype: str | None = None,
        explain: bool = True,
    ) -> Comparison:
        __tracebackhide__ = True
        from xlmr_core.formatting import dtype_name
        from xlmr_core.parity.check import check_trace
        from xlmr_core.parity.foreign import narrower_dtype
        from xlmr_core.parity.int8 import INT8
        from xlmr_core.parity.name_map import summary

        trace = _trace(request)
        tensors, matching = _tensors(trace, dump, names)
        narrower = narrower_dtype(tensors)
        computed_in = dtype or (dtype_name(narrower) if narrower else None)
        floors = _floors(request, trace, tensors, computed_in)
        absent = matching.absent if matching else ()
        comparison = check_trace(trace, tensors, floors=floors, taps=taps, partial=partial, absent=absent)
        if not comparison.ok:
            report = [str(comparison), f"judged by the floors of {computed_in}" if computed_in else ""]
            report += [summary(matching)] if matching else []
            if explain and comparison.first_divergence is not None and computed_in not in INT8:
                report += ["", _explained(_checkpoint(request).model, trace.inputs, tensors, computed_in)]
            pytest.fail("\n".join(report), pytrace=False)
        return comparison

    return check


# ---- what the fixtures work on ---------------------------------------------------------------------------------------


def _option(request: pytest.FixtureRequest, name: str) -> Any:
    """From the marker, else from the ini file. Raises UsageError for a marker with another argument."""
    marker = request.node.get_closest_marker("xlmr")
    given: dict[str, Any] = marker.kwargs if marker else {}
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown or (marker and marker.args):
        raise pytest.UsageError(f"the marker xlmr takes {', '.join(OPTIONS)} by name, not {unknown or marker.args}")
    return given.get(name) or request.config.getini(f"xlmr_{name}")


def _kept(request: pytest.FixtureRequest, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    cache = request.config.stash[CACHE]
    if key not in cache:
        cache[key] = make()
    return cache[key]


def _path(request: pytest.FixtureRequest, name: str) -> str:
    """A path in the ini file is relative to the root of the tests; a hub id stays as it is."""
    here = request.config.rootpath / name
    return str(here) if here.exists() else name


def _checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    from xlmr_core.parity.recording import Checkpoint

    source = _path(request, str(_option(request, "checkpoint")))
    return _kept(request, ("checkpoint", source), lambda: Checkpoint.load(source))


def _trace(request: pytest.FixtureRequest) -> Trace:
    from xlmr_core.parity.recording import record
    from xlmr_core.parity.trace import Trace

    file = _option(request, "trace")
    if file:
        path = Path(_path(request, str(file)))
        return _kept(request, ("trace", str(path)), lambda: Trace.load(path))
    source, texts = _path(request, str(_option(request, "checkpoint"))), tuple(_option(request, "texts"))
    pairs, taps = tuple(_option(request, "pairs")), tuple(_option(request, "taps"))
    key = ("trace", source, texts, pairs, taps)
    return _kept(request, key, lambda: record(source, texts, pairs=pairs, taps=taps, top_k=0))


def _floors(
    request: pytest.FixtureRequest, trace: Trace, tensors: Mapping[str, Tensor], computed_in: str | None
) -> Floors:
    """Those beside the trace, else measured now on its input, for the dtypes at hand and what the port computes in."""
    from dataclasses import replace

    from xlmr_core.formatting import dtype_name
    from xlmr_core.parity.check import floors_path, measure_trace, read_floors
    from xlmr_core.parity.int8 import INT8

    file = _option(request, "trace")
    beside = floors_path(Path(_path(request, str(file)))) if file else None
    if beside is not None and beside.is_file():
        return replace(read_floors(trace, beside), computed_in=computed_in)
    present = {dtype_name(tensor.dtype) for tensor in [*tensors.values(), *trace.tensors.values()]}
    present |= {computed_in or "float32", "float32"}
    wanted = tuple(name for name in ("float32", "bfloat16", "float16", *INT8) if name in present)

    def measured() -> Floors:
        return measure_trace(trace, _checkpoint(request), dtypes=wanted).floors

    return replace(_kept(request, ("floors", id(trace), wanted), measured), computed_in=computed_in)


def _tensors(trace: Trace, dump: Any, names: Any) -> tuple[dict[str, Tensor], Matching | None]:
    """The dump under our names and in our shapes; without a map and a name of ours, as far as it is recognised."""
    from xlmr_core.parity.foreign import read_names
    from xlmr_core.parity.ports import in_our_terms, open_port

    names = read_names(Path(names)) if isinstance(names, str | PathLike) else names
    if isinstance(dump, str | PathLike):
        return open_port(trace, Path(dump), names)
    return in_our_terms(trace, {name: _array(value) for name, value in dump.items()}, names)


def _array(value: Any) -> Tensor:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return torch.from_numpy(np.ascontiguousarray(value))


def _explained(model: Any, inputs: Any, tensors: Mapping[str, Tensor], computed_in: str | None) -> str:
    """The diagnosis, or why there is none."""
    from xlmr_core.parity.diagnose import diagnose
    from xlmr_core.parity.trace import DTYPES

    try:
        return str(diagnose(model, inputs, tensors, dtype=DTYPES[computed_in] if computed_in else None))
    except ValueError as error:
        return f"no diagnosis: {error}"
