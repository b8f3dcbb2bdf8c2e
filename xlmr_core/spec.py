"""The description of a model class. Loading, taps, noise floors and traces read it; they have no list of classes."""

from dataclasses import dataclass
from typing import Literal

from xlmr_core.parameter_groups import ENCODER, PUBLISHED_GROUPS, ParameterGroup


@dataclass(frozen=True)
class Tap:
    """One named tensor: the `side` of a module of the model.

    Args:
        name: name of the tap.
        shape: its axes, by the letters of model.py. In a packed batch B, S reads T, except for scores and probs, which
            have a row for each sequence there too. A pooler in a multiple-choice model has B * K for B.
        meaning: a few words for tables.
        module: name of the module in the model.
        side: whether the tensor is the module's input or its output.
    """

    name: str
    shape: str
    meaning: str
    module: str
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True)
class ModelSpec:
    """The description of a model class: its attribute `spec`.

    Args:
        groups: the groups of parameters that the class adds to the encoder.
        optional: the groups that it may have.
        taps: the tensors above the encoder that have names, in reading order.
        row_parameters: parts of the names of parameters that have a row for each label or token, so that no row is a
            feature.
        transformers_name: the end of the name of transformers' class, after XLMRoberta or XLMRobertaXL; None if
            transformers has no such class.
        has_labels: whether its logits are those of `config.labels`.
        has_choices: whether its batches have one more axis, for the choices of a question.
        is_encoder: whether it is the encoder itself; other classes have one as the attribute `encoder`.
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
        """The names of the groups that a checkpoint must have."""
        return (ENCODER.name, *(group.name for group in self.groups))

    @property
    def optional_names(self) -> tuple[str, ...]:
        """The names of the groups that a checkpoint may have."""
        return tuple(group.name for group in self.optional)

    @property
    def with_prefix(self) -> bool:
        """Whether transformers puts a prefix before the encoder's keys: in all its classes but the encoder's."""
        return self.transformers_name != "Model"

    def architectures(self, norm_first: bool) -> list[str]:
        """The field `architectures` of config.json: the name of transformers' class, if there is one."""
        prefix = "XLMRobertaXL" if norm_first else "XLMRoberta"
        return [] if self.transformers_name is None else [prefix + self.transformers_name]


CLASSES: list[type] = []  # every model class that has a spec of its own, in the order of definition


def spec_of(cls: type) -> ModelSpec:
    """The spec of a model class, or of the nearest parent that has one.

    Raises:
        TypeError: there is none.
    """
    spec = getattr(cls, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise TypeError(
            f"{cls.__name__} has no spec: describe what it adds to the encoder with `spec = ModelSpec(...)`"
        )
    return spec


def known_groups() -> dict[str, ParameterGroup]:
    """Every group but the encoder, by name: those of published checkpoints and those of classes that a caller wrote."""
    own = [group for cls in CLASSES for group in (*spec_of(cls).groups, *spec_of(cls).optional)]
    return {group.name: group for group in (*own, *PUBLISHED_GROUPS)}


def files_beside() -> dict[str, str]:
    """The groups with a file of their own beside the weights: {group name: file name}."""
    return {name: group.file for name, group in known_groups().items() if group.file is not None}
