"""What a step of the course is: functions to write, inputs with the right answers, and the usual faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

HERE = Path(__file__).parent
IN_TORCH = 'ARRAYS = "torch"  # or "numpy": what you write in'
IN_NUMPY = 'ARRAYS = "numpy"  # or "torch": what you write in'


@dataclass(frozen=True)
class Case:
    """One call of a function.

    Attributes:
        arguments: By name. Tensors are float64 or int64; a learner who works in NumPy gets arrays.
        expected: What the function must return: a tensor, a list of integers, or a dict or tuple of tensors.
        about: The input in words.
        counts: Where a result has a meaning, of the shape of `expected` or of its first axes; None for everywhere. The
            vectors of padding have none.
        hidden: Where `expected` is a score that the softmax must turn into 0: any number below `LOW` is right.
    """

    arguments: Mapping[str, Any]
    expected: Any
    about: str
    counts: Tensor | None = None
    hidden: Tensor | None = None


LOW = -1e4


@dataclass(frozen=True)
class Fault:
    """A way to write a function wrong, by which a learner's fault is recognised."""

    name: str
    why: str  # what is wrong, and why it matters, in a sentence or two
    make: Callable[..., Any]  # the wrong function


@dataclass(frozen=True)
class Function:
    """One function that the learner writes.

    Attributes:
        name: In the learner's file.
        axes: Of the result, in words, for messages.
        cases: From the material of the course.
        faults: What learners and ports do wrong here.
    """

    name: str
    axes: tuple[str, ...]
    cases: Callable[[Any], list[Case]]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Step:
    """One page, one file to fill in, and its functions."""

    name: str  # of the page, of the file and on the command line
    title: str
    functions: tuple[Function, ...]
    bonus: bool = False
    arrays: str | None = None  # "numpy": the only kind that this step takes

    @property
    def file(self) -> str:
        """The name of the learner's file, which Python can import."""
        return self.name.replace("-", "_") + ".py"

    @property
    def page(self) -> Path:
        """The text."""
        return HERE / "pages" / f"{self.name}.md"

    @property
    def picture(self) -> Path:
        """The picture on the page; tools/course_pictures.py draws it."""
        return HERE / "pages" / "pictures" / f"{self.name}.svg"

    @property
    def stub(self) -> Path:
        """The file to fill in."""
        return HERE / "stubs" / self.file

    def stub_in(self, arrays: str) -> str:
        """The text of the file to fill in, for a learner who writes in "torch" or in "numpy"."""
        text = self.stub.read_text(encoding="utf-8")
        return text.replace(IN_TORCH, IN_NUMPY) if arrays == "numpy" else text

    @property
    def solution(self) -> Path:
        """The same, filled in."""
        return HERE / "solutions" / self.file

    def solution_in(self, arrays: str) -> Path:
        """The same in "torch" or in "numpy", which may be one file."""
        in_numpy = HERE / "solutions" / "in_numpy" / self.file
        return in_numpy if arrays == "numpy" and in_numpy.exists() else self.solution
