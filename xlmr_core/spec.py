"""What a model class says of itself. Loading, taps, noise floors and traces read it, and know no class by its name."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tap:
    """One named tensor: the `side` of the module of that name in the model.

    Letters as in model.py and heads.py. Where the batch is packed, B, S reads T, but for scores and probs, which have
    a row for each sequence then, too. A pooler in a multiple-choice model has B * K for B.
    """

    name: str
    shape: str
    meaning: str
    module: str
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that a checkpoint has all of, or none.

    keys: their names, ours; a last `*` stands for `weight` and `bias`. Published files use the same, but where
    checkpoint/layouts.py lists others; there too is the LM head's decoder, whose name depends on whether it is tied.
    file: the file of its own, beside the weights, in which the group is published.
    """

    name: str
    keys: tuple[str, ...] = ()
    file: str | None = None


# The groups of published checkpoints. They stand here because every class must recognise all of them: the tensors of
# a head that a class does not have are dropped, and a tensor of no known group is an error.
ENCODER = ParameterGroup("encoder")  # its many names are those of each key layout
POOLER = ParameterGroup("pooler", ("pooler.dense.*",))
LM_HEAD = ParameterGroup("lm_head", ("lm_head.dense.*", "lm_head.norm.*"))
SEQUENCE_CLASSIFIER = ParameterGroup("sequence_classifier", ("classifier.dense.*", "classifier.out_proj.*"))
LINEAR_CLASSIFIER = ParameterGroup("linear_classifier", ("classifier.*",))
QA_OUTPUTS = ParameterGroup("qa_outputs", ("qa_outputs.*",))
SPARSE_LINEAR = ParameterGroup("sparse_linear", ("sparse_linear.*",), file="sparse_linear.pt")
COLBERT_LINEAR = ParameterGroup("colbert_linear", ("colbert_linear.*",), file="colbert_linear.pt")
PUBLISHED_GROUPS = (
    POOLER,
    LM_HEAD,
    SEQUENCE_CLASSIFIER,
    LINEAR_CLASSIFIER,
    QA_OUTPUTS,
    SPARSE_LINEAR,
    COLBERT_LINEAR,
)


@dataclass(frozen=True)
class ModelSpec:
    """What a model class says of itself, as its attribute `spec`.

    groups: the parameters it has, beside the encoder's. optional: those it may have.
    taps: the tensors above the encoder that have names, in reading order.
    row_parameters: parts of the names of parameters with a row for each label or token, in which no row is a feature.
    transformers_name: how the name of transformers' class ends, after XLMRoberta or XLMRobertaXL; None without one.
    has_labels: whether its logits are those of `config.labels`.
    has_choices: whether its batches have one more axis, for the choices of a question.
    is_encoder: whether it is the encoder; other classes have theirs as the attribute `encoder`.
    """

    groups: tuple[ParameterGroup, ...]
    optional: tuple[ParameterGroup, ...] = ()
    taps: tuple[Tap, ...] = ()
    row_parameters: tuple[str, ...] = ()
    transformers_name: str | None = None
    has_labels: bool = False
    has_choices: bool = False
    is_encoder: bool = False

    @property
    def required_names(self) -> tuple[str, ...]:
        """The names of the groups without which nothing is loaded."""
        return (ENCODER.name, *(group.name for group in self.groups))

    @property
    def optional_names(self) -> tuple[str, ...]:
        """The names of the groups that it may do without."""
        return tuple(group.name for group in self.optional)

    @property
    def with_prefix(self) -> bool:
        """Whether transformers puts a prefix before the encoder's keys: in all its classes but the encoder's."""
        return self.transformers_name != "Model"

    def architectures(self, norm_first: bool) -> list[str]:
        """What config.json calls it: the name of transformers' class, if there is one."""
        prefix = "XLMRobertaXL" if norm_first else "XLMRoberta"
        return [] if self.transformers_name is None else [prefix + self.transformers_name]


CLASSES: list[type] = []  # every model class that has a spec of its own, in the order of definition


def spec_of(cls: type) -> ModelSpec:
    """The spec of a model class, or of the nearest parent that has one.

    Raises:
        TypeError: if there is none.
    """
    spec = getattr(cls, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise TypeError(f"{cls.__name__} has no spec: say what it has above the encoder with `spec = ModelSpec(...)`")
    return spec


def known_groups() -> dict[str, ParameterGroup]:
    """Every group but the encoder, by name: those of published checkpoints and those of classes that a caller wrote."""
    own = [group for cls in CLASSES for group in (*spec_of(cls).groups, *spec_of(cls).optional)]
    return {group.name: group for group in (*own, *PUBLISHED_GROUPS)}


def files_beside() -> dict[str, str]:
    """Which file beside the weights has which group: {group name: file name}."""
    return {name: group.file for name, group in known_groups().items() if group.file is not None}
