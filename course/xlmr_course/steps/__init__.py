"""The steps in their order. Each module has one."""

from xlmr_course.step import Step
from xlmr_course.steps.attention import CONTEXT, HEADS, OUTPUT, SCORES
from xlmr_course.steps.ends import LM_HEAD, LOADING, STACK
from xlmr_course.steps.layer import FEED_FORWARD
from xlmr_course.steps.more import NUMPY, PACKING, TRAINING, XL
from xlmr_course.steps.text import EMBEDDINGS, IDS, POSITIONS

STEPS: tuple[Step, ...] = (
    IDS,
    POSITIONS,
    EMBEDDINGS,
    HEADS,
    SCORES,
    CONTEXT,
    OUTPUT,
    FEED_FORWARD,
    STACK,
    LM_HEAD,
    LOADING,
    PACKING,
    TRAINING,
    XL,
    NUMPY,
)
