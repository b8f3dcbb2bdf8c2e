"""The shapes written beside signatures and fields are the shapes that come out.

A comment such as `# (*, H), (B) -> (B, H)` is read from the source and held against every real call on a tiny model
whose sizes are pairwise distinct, so that no letter can be taken for another. Arguments that are not tensors have no
shape in it.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import wraps
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from reference import POST_NORM, PRE_NORM, awkward_batch, packed_batch
from torch import Tensor

from xlmr_core import heads, model
from xlmr_core.config import XLMRobertaConfig
from xlmr_core.heads import XLMRobertaForMaskedLM
from xlmr_core.model import XLMRobertaModel

BATCH = awkward_batch(POST_NORM)
PACKED = packed_batch(BATCH, POST_NORM.pad_token_id)
LABELS = tuple("ABCDEFG")
SIZES = {
    "B": 5,
    "S": 11,
    "H": POST_NORM.hidden_size,
    "N": POST_NORM.num_attention_heads,
    "D": POST_NORM.head_dim,
    "F": POST_NORM.intermediate_size,
    "V": POST_NORM.vocab_size,
    "C": len(LABELS),
    "T": len(PACKED["input_ids"]),
    "1": 1,
}
STARS = (("B", "S"), ("T",), ("K",), ("B", "K", "S"))  # padded, packed, some positions, padded choices
HEADS = (
    heads.XLMRobertaForSequenceClassification,
    heads.XLMRobertaForTokenClassification,
    heads.XLMRobertaForQuestionAnswering,
    heads.XLMRobertaForM3,
)
# Fused attention takes the sequences of a packed batch one by one: each is a batch of its own.
ALONE = [SIZES | {"B": 1, "S": length} for length in PACKED["lengths"].tolist()]


@dataclass(frozen=True)
class Signature:
    module: ModuleType
    owner: str  # the class, or "" for a function of the module
    name: str
    inputs: list[str]
    output: str | None  # None where the function returns an object, whose fields have shapes of their own

    @property
    def qualified_name(self) -> str:
        return f"{self.module.__name__}:{self.owner}.{self.name}"


def shapes_in(text: str) -> list[str]:
    return re.findall(r"\(([^()]*)\)", text)


def functions(module: ModuleType) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function of a module with the name of its class."""
    for node in ast.parse(inspect.getsource(module)).body:
        for child in node.body if isinstance(node, ast.ClassDef) else [node]:
            abstract = isinstance(child, ast.FunctionDef) and isinstance(child.body[-1], ast.Raise)
            if isinstance(child, ast.FunctionDef) and not abstract:
                yield node.name if isinstance(node, ast.ClassDef) else "", child


def comment_of(module: ModuleType, function: ast.FunctionDef) -> str:
    header = inspect.getsource(module).splitlines()[function.lineno - 1 : function.body[0].lineno - 1]
    return "".join(line.partition("#")[2] for line in header)


def takes_tensors(function: ast.FunctionDef) -> bool:
    annotations = [argument.annotation for argument in function.args.args + function.args.kwonlyargs]
    return any(node is not None and "Tensor" in ast.unparse(node) for node in [*annotations, function.returns])


def signatures() -> list[Signature]:
    found: list[Signature] = []
    for module in (model, heads):
        for owner, function in functions(module):
            if shapes := shapes_in(comment_of(module, function)):
                has_output = "->" in comment_of(module, function)
                inputs, output = (shapes[:-1], shapes[-1]) if has_output else (shapes, None)
                found.append(Signature(module, owner, function.name, inputs, output))
    return found


def fits(letters: str, shape: torch.Size) -> bool:
    """Whether a shape is what the letters say.

    `*` is one of STARS, a last `...` any more axes, and a letter that is not in SIZES any size.
    """
    first, *rest = [name.strip() for name in letters.split(",")]
    starts = STARS if first == "*" else ((first,),)
    return any(_fits([*start, *rest], shape, sizes) for start in starts for sizes in (SIZES, *ALONE))


def _fits(names: list[str], shape: torch.Size, sizes: dict[str, int]) -> bool:
    if names[-1] == "...":
        names, shape = names[:-1], shape[: len(names) - 1]
    return len(names) == len(shape) and all(
        sizes.get(name, size) == size for name, size in zip(names, shape, strict=True)
    )


def run_everything() -> list[Any]:
    """Every function at least once: padded and packed, both attention paths and placements of norms, every head."""
    outputs: list[Any] = []
    for config in (POST_NORM, PRE_NORM):
        for attention in ("eager", "sdpa"):
            encoder = XLMRobertaModel(config, attention=attention, add_pooling_layer=True)
            lm = XLMRobertaForMaskedLM(config, attention=attention)
            labelled = replace(config, labels=LABELS)
            for batch in (BATCH, PACKED):
                outputs.append(encoder(**batch))
                outputs += [lm(**batch), lm(**batch, positions=batch["input_ids"] == 52)]
                outputs += [head(labelled, attention=attention)(**batch) for head in HEADS]
            chooser = heads.XLMRobertaForMultipleChoice(labelled, attention=attention)
            # Of one choice each: B rows reach the encoder.
            outputs.append(chooser(**{name: tensor[:, None] for name, tensor in BATCH.items()}))
            outputs.append(chooser(**PACKED | {"lengths": PACKED["lengths"][:, None]}))
    with pytest.MonkeyPatch.context() as patched:  # the kernel runs only on CUDA: this one has its shapes
        kernel = SimpleNamespace(varlen_attn=lambda q, *_: q)
        patched.setitem(sys.modules, "torch.nn.attention.varlen", kernel)
        patched.setattr(model.SelfAttention, "_takes_varlen", lambda *_: True)
        outputs.append(XLMRobertaModel(POST_NORM, attention="sdpa", add_pooling_layer=True)(**PACKED))
    return outputs


def test_sizes_are_pairwise_distinct() -> None:
    assert len(set(SIZES.values())) == len(SIZES)
    assert tuple(BATCH["input_ids"].shape) == (SIZES["B"], SIZES["S"])
    assert POST_NORM.num_hidden_layers not in SIZES.values()


def test_every_function_on_tensors_says_its_shapes() -> None:
    stated = {(signature.owner, signature.name) for signature in signatures()}
    for module in (model, heads):
        for owner, function in functions(module):
            if takes_tensors(function):
                assert (owner, function.name) in stated, f"{module.__name__}: {owner}.{function.name} states no shapes"


@pytest.mark.parametrize("signature", signatures(), ids=lambda signature: signature.qualified_name)
def test_signature(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = getattr(signature.module, signature.owner) if signature.owner else signature.module
    function: Callable[..., Any] = getattr(owner, signature.name)
    calls = 0

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        hints = inspect.signature(function).parameters
        given = [value for name, value in bound.arguments.items() if "Tensor" in str(hints[name].annotation)]
        for letters, value in zip(signature.inputs, given, strict=True):
            assert value is None or fits(letters, value.shape), f"({letters}) was given {tuple(value.shape)}"
        result = function(*args, **kwargs)
        if signature.output is not None:
            assert fits(signature.output, result.shape), f"({signature.output}) came out as {tuple(result.shape)}"
        return result

    monkeypatch.setattr(owner, signature.name, checked)
    run_everything()
    assert calls > 0, "never called"


@pytest.mark.parametrize(
    "output_class",
    [
        model.ModelOutput,
        heads.MaskedLMOutput,
        heads.SequenceClassifierOutput,
        heads.TokenClassifierOutput,
        heads.QuestionAnsweringOutput,
        heads.MultipleChoiceOutput,
        heads.M3Output,
    ],
)
def test_fields_of_an_output(output_class: type[Any]) -> None:
    lines = inspect.getsource(output_class).splitlines()
    stated = {line.split(":")[0].strip(): shapes_in(line.partition("#")[2]) for line in lines if "# (" in line}
    assert list(stated) == [field.name for field in fields(output_class)]
    seen: set[str] = set()
    for output in run_everything():
        if isinstance(output, output_class):
            for name, alternatives in stated.items():
                value: Tensor = getattr(output, name)
                matching = [letters for letters in alternatives if fits(letters, value.shape)]
                assert matching, f"{name} is {tuple(value.shape)}, none of {alternatives}"
                seen.update(f"{name} ({letters})" for letters in matching)
    assert seen == {f"{name} ({letters})" for name, alternatives in stated.items() for letters in alternatives}


def test_scores_and_probs_have_the_shape_written_beside_them() -> None:
    source = inspect.getsource(model.SelfAttention)
    (line,) = [line for line in source.splitlines() if line.strip().startswith("scores = torch.matmul(q,")]
    (letters,) = shapes_in(line.partition("#")[2])
    encoder = XLMRobertaModel(POST_NORM)
    shapes: list[torch.Size] = []
    softmax = encoder.layers[0].attention.softmax
    softmax.register_forward_hook(lambda _, args, out: shapes.extend([args[0].shape, out.shape]))
    encoder(**BATCH)
    assert len(shapes) == 2
    assert all(fits(letters, shape) for shape in shapes)


def test_the_letters_can_be_wrong() -> None:
    config: XLMRobertaConfig = POST_NORM
    hidden = torch.Size([5, 11, config.hidden_size])
    assert fits("B, S, H", hidden)
    assert fits("*, H", hidden)
    assert fits("*, H", torch.Size([SIZES["T"], config.hidden_size]))
    assert fits("K, S, H", hidden)
    assert not fits("S, B, H", hidden)
    assert not fits("B, S, F", hidden)
    assert not fits("B, S", hidden)
    assert not fits("*, V", hidden)
    assert not fits("*, H", torch.Size([5, 12, config.hidden_size]))
    assert not fits("*", torch.Size([]))
    assert fits("*, ...", hidden)
    assert not fits("S, B, ...", hidden)
    assert not fits("B, S, H", torch.Size([1, 12, config.hidden_size]))
