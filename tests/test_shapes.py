"""The axes in signatures and in the fields of outputs are those of the tensors, in runs of a tiny model.

jaxtyping and beartype check each call. The sizes of the config are pairwise distinct and take the place of the names of
its axes, so that `hidden` is `hidden_size` and not just the same number twice.
"""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from reference import POST_NORM, PRE_NORM, awkward_batch, packed_batch

from xlmr_core import heads, kernels, model, tokenizer

LABELS = tuple("ABCDEFG")
SIZES = {
    "hidden": POST_NORM.hidden_size,
    "heads": POST_NORM.num_attention_heads,
    "head_dim": POST_NORM.head_dim,
    "intermediate": POST_NORM.intermediate_size,
    "vocab": POST_NORM.vocab_size,
    "classes": len(LABELS),
}
BATCH = awkward_batch(POST_NORM)
PACKED = packed_batch(BATCH, POST_NORM.pad_token_id)
MODULES = (kernels, model, heads)
TYPES = ("Bool", "Float", "Int", "Shaped")
HEADS = (
    heads.XLMRobertaForSequenceClassification,
    heads.XLMRobertaForTokenClassification,
    heads.XLMRobertaForQuestionAnswering,
    heads.XLMRobertaForM3,
)


@dataclass(frozen=True)
class Function:
    owner: Any  # a module or a class
    name: str

    @property
    def qualified_name(self) -> str:
        return f"{self.owner.__name__}.{self.name}"


def functions() -> Iterator[Function]:
    """Every function, method and `__init__` of a dataclass that has a tensor in its signature."""
    for module in MODULES:
        local = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        for owner in (module, *(value for value in local if isinstance(value, type))):
            for name, value in vars(owner).items():
                if isinstance(value, FunctionType) and value.__module__ == module.__name__ and has_tensors(value):
                    yield Function(owner, name)


def has_tensors(function: FunctionType) -> bool:
    return any("Tensor" in str(annotation) for annotation in function.__annotations__.values())


def with_sizes(annotation: Any) -> Any:
    """The annotation with numbers for the axes that the config fixes."""
    if not isinstance(annotation, str):
        return annotation
    return re.sub(r"""(["']).*?\1""", lambda axes: re.sub(r"\w+", lambda name: size_of(name[0]), axes[0]), annotation)


def size_of(axis: str) -> str:
    return str(SIZES.get(axis, axis))


def checked(function: FunctionType, calls: list[str], name: str) -> Callable[..., Any]:
    """The function with its shapes checked in each call."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__ = function.__qualname__
    copy.__annotations__ = {key: with_sizes(value) for key, value in function.__annotations__.items()}
    typed = jaxtyping.jaxtyped(copy, typechecker=beartype)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return typed(*args, **kwargs)

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that were called, each of which has its shapes checked."""
    names: list[str] = []
    for module in MODULES:
        for name in TYPES:
            monkeypatch.setattr(module, name, getattr(jaxtyping, name), raising=False)
    for function in list(functions()):
        original = vars(function.owner)[function.name]
        monkeypatch.setattr(function.owner, function.name, checked(original, names, function.qualified_name))
    for module in (model, heads):  # what they have imported from each other
        for name in ("batch_of", "first_token", "packed_position_ids"):
            if name in vars(module):
                monkeypatch.setattr(module, name, getattr(kernels, name))
    return names


def run_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function at least once: padded and packed, both attention kernels and placements of norms, every head."""
    for config in (POST_NORM, PRE_NORM):
        for attention in ("eager", "sdpa"):
            encoder = model.XLMRobertaModel(config, attention=attention, add_pooling_layer=True)
            lm = heads.XLMRobertaForMaskedLM(config, attention=attention)
            labelled = replace(config, labels=LABELS)
            for batch in (BATCH, PACKED):
                encoder(**batch)
                encoder(**batch | {"position_ids": None})
                lm(**batch)
                lm(**batch, positions=batch["input_ids"] == 52)
                for head in HEADS:
                    head(labelled, attention=attention)(**batch)
            chooser = heads.XLMRobertaForMultipleChoice(labelled, attention=attention)
            chooser(**{name: tensor[:, None].expand(-1, 2, -1) for name, tensor in BATCH.items()})
            chooser(**PACKED | {"lengths": PACKED["lengths"][:, None]})
    # The varlen kernel runs on CUDA only: here is one with its shapes.
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=lambda q, *_: q))
    monkeypatch.setattr(kernels, "HAS_VARLEN", True)
    original = kernels.FusedAttention._takes_varlen
    monkeypatch.setattr(kernels.FusedAttention, "_takes_varlen", lambda self, q: original(self, q) or True)
    model.XLMRobertaModel(POST_NORM, attention="sdpa", add_pooling_layer=True)(**PACKED)


def test_sizes_are_pairwise_distinct() -> None:
    sizes = [*SIZES.values(), *BATCH["input_ids"].shape, len(PACKED["input_ids"]), POST_NORM.num_hidden_layers]
    assert len(set(sizes)) == len(sizes)
    assert (PRE_NORM.hidden_size, PRE_NORM.num_attention_heads) == (POST_NORM.hidden_size, SIZES["heads"])


@pytest.mark.parametrize("module", [*MODULES, tokenizer], ids=lambda module: module.__name__)
def test_every_tensor_in_a_signature_has_its_axes(module: ModuleType) -> None:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            annotations = [node.returns, *(argument.annotation for argument in arguments)]
        elif isinstance(node, ast.ClassDef):
            annotations = [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
        else:
            continue
        for text in (ast.unparse(annotation) for annotation in annotations if annotation is not None):
            bare = re.sub(r"(Bool|Float|Int|Shaped)\[Tensor, '[^']+'\]", "", text).replace("dict[str, Tensor]", "")
            assert "Tensor" not in bare, f"line {node.lineno} of {module.__name__}: {text}"


def test_shapes_are_those_of_the_signatures(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_everything(monkeypatch)
    abstract = {"EncoderWithHead.head"}
    assert {function.qualified_name for function in functions()} - abstract <= set(calls)


def test_a_wrong_shape_fails(calls: list[str]) -> None:
    encoder = model.XLMRobertaModel(POST_NORM)
    hidden = torch.randn(5, 11, POST_NORM.hidden_size)
    feed_forward = encoder.layers[0].feed_forward
    assert feed_forward(hidden).shape == hidden.shape
    feed_forward.down_proj = torch.nn.Linear(POST_NORM.intermediate_size, 7)  # a result of a wrong width
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        feed_forward(hidden)
    with pytest.raises(jaxtyping.TypeCheckError):
        model.ModelOutput(hidden[..., :-1])  # not the config's hidden_size
    with pytest.raises(jaxtyping.TypeCheckError):
        encoder.layers[0].attention._split_heads(hidden[0])  # an axis is missing
    with pytest.raises(jaxtyping.TypeCheckError):
        model.position_ids_from(hidden[..., 0], 1)  # of floats
    with pytest.raises(jaxtyping.TypeCheckError):  # rows of two widths
        heads.QuestionAnsweringOutput(torch.ones(5, 11), torch.ones(5, 12), hidden)
    assert calls


def test_scores_and_probs() -> None:
    shapes: list[torch.Size] = []
    encoder = model.XLMRobertaModel(POST_NORM)
    encoder.layers[0].attention.softmax.register_forward_hook(
        lambda _, args, out: shapes.extend([args[0].shape, out.shape])
    )
    encoder(**BATCH)
    rows, width = BATCH["input_ids"].shape
    assert shapes == [(rows, SIZES["heads"], width, width)] * 2


def test_a_run_does_not_import_jaxtyping() -> None:
    code = "import sys, xlmr_core.heads, xlmr_core.tokenizer; sys.exit('jaxtyping' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
