"""The steps in their order."""

from xlmr_course.step import Step
from xlmr_course.steps.attention import CONTEXT, HEADS, SCORES
from xlmr_course.steps.bonus import NUMPY, XL
from xlmr_course.steps.embeddings import EMBEDDINGS
from xlmr_course.steps.ends import LM_HEAD, LOADING
from xlmr_course.steps.layer import FEED_FORWARD, OUTPUT
from xlmr_course.steps.packing import PACKING
from xlmr_course.steps.stack import STACK
from xlmr_course.steps.text import IDS, POSITIONS
from xlmr_course.steps.training import TRAINING

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
