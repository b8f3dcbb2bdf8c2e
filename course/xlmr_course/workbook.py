"""The learner's folder: a page and a file for each step, and what has been passed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from xlmr_core.atomic import written_as
from xlmr_course.judge import LONGEST, Verdict, unmarked
from xlmr_course.step import Step
from xlmr_course.steps import STEPS

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Workbook:
    """A folder that `start` made."""

    folder: Path

    @classmethod
    def start(cls, folder: Path, arrays: str = "torch") -> Workbook:
        """Copies pages and files into a folder; what is there already stays as it is.

        Args:
            folder: Is made if it does not exist.
            arrays: What the learner writes in, "torch" or "numpy": the files to fill in say so.

        Raises:
            OSError: The folder cannot be written.
        """
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for number, step in enumerate(STEPS, start=1):
            for source, target in (
                (step.page, folder / f"{number:02}-{step.name}.md"),
                (step.picture, folder / "pictures" / step.picture.name),
            ):
                if not target.exists():
                    shutil.copyfile(source, target)
            if not cls(folder).file(step).exists():
                cls(folder).file(step).write_text(step.stub_in(arrays), encoding="utf-8")
        if not (folder / PROGRESS).exists():
            cls(folder)._write({})
        return cls(folder)

    @classmethod
    def find(cls, folder: Path) -> Workbook:
        """The workbook in this folder.

        Raises:
            ValueError: There is none.
        """
        if not (folder / PROGRESS).is_file():
            raise ValueError(
                f"{folder.resolve()} is no folder of the course: make one with `xlmr course start`, and go there"
            )
        return cls(folder)

    def file(self, step: Step) -> Path:
        """The learner's file of a step."""
        return self.folder / step.file

    def passed(self) -> dict[str, str]:
        """The steps that were passed, and when.

        Raises:
            ValueError: The file is damaged.
        """
        try:
            found = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            assert isinstance(found, dict)
        except (json.JSONDecodeError, UnicodeDecodeError, AssertionError):
            path = self.folder / PROGRESS
            raise ValueError(
                f"{path} is damaged: remove it, run `xlmr course start` and check the steps again"
            ) from None
        return {str(name): str(day) for name, day in found.items()}

    def check(self, step: Step) -> list[Verdict]:
        """Marks a step in a process of its own, and keeps the result if it is passed.

        Raises:
            ValueError: The file is missing.
        """
        file = self.file(step)
        if not file.is_file():
            raise ValueError(f"{file} is missing: `xlmr course start {self.folder}` puts it there again")
        command = [sys.executable, "-m", "xlmr_course.judge", step.name, str(file)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, cwd=self.folder)
        except subprocess.TimeoutExpired:
            return unmarked(step, f"it was stopped after {LONGEST:.0f} seconds: an endless loop?")
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["without a message"])[-1]
            return unmarked(step, f"the process ended with status {run.returncode}: {last}")
        printed, _, marks = run.stdout.rstrip("\n").rpartition("\n")
        if printed.strip():  # by the learner's functions
            print(printed.rstrip())
        verdicts = [Verdict(**verdict) for verdict in json.loads(marks)]
        if all(verdict.ok for verdict in verdicts):
            self._write(self.passed() | {step.name: date.today().isoformat()})
        return verdicts

    def _write(self, passed: dict[str, str]) -> None:
        with written_as(self.folder / PROGRESS) as temporary:
            temporary.write_text(json.dumps(passed, indent=1) + "\n", encoding="utf-8")
