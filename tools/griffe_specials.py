"""For the documentation site: special tokens in docstrings, which a browser would take for HTML, become code."""

import re
from typing import Any

import griffe

CODE_OR_SPECIAL = re.compile(r"(`[^`]*`)|(<(?:/?s|mask|pad|unk)>)")


class Specials(griffe.Extension):
    """Puts <s>, <mask> and the like into backticks where they are not yet in code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = CODE_OR_SPECIAL.sub(lambda match: match[1] or f"`{match[2]}`", obj.docstring.value)
