"""The groups of tensors that published checkpoints have, beside the encoder's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that a checkpoint has all of, or none.

    Args:
        name: name of the group.
        keys: our names of its tensors; a last `*` means `weight` and `bias`. Published files use the same names, except
            where checkpoint/layouts.py lists others. The LM head's decoder is there too: its name depends on whether
            it is tied.
        file: the file beside the weights in which the group is published, if it has its own.
    """

    name: str
    keys: tuple[str, ...] = ()
    file: str | None = None


# Every class must recognise all groups, so they are not in the heads' classes: the tensors of a head that a class does
# not have are dropped, and a tensor of no known group is an error.
ENCODER = ParameterGroup("encoder")  # the key layouts have its many names
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
