"""Looks at the opcodes of a pickle before torch carries them out: what they would cost is bounded by what they say.

torch's restricted unpickler runs nothing but a few known functions, yet a pickle of 1 kB can make it use any amount of
memory or time: nested calls of `_codecs.encode` double a string each, integer keys of a dict can be chosen to collide,
and a list that holds another twice, and so on, takes for ever to print. This module follows the opcodes on a stack of
its own, calls nothing, and refuses what the files of a checkpoint never contain.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, as torch's unpickler translates them
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from xlmr_core.errors import CheckpointError

PICKLE_LIMIT = 8 * 2**20  # bytes; XXL with the state of its optimizer has less than 1 MB
OPCODES_LIMIT = 1_000_000  # in one file; XXL with the state of its optimizer has about 100,000
INTEGER_KEYS_LIMIT = 10_000  # in all dicts of one file; an optimizer has one for each parameter
LARGEST_KEY = 2**61 - 2  # from 2**61 - 1 on, integers share their hash values with smaller ones
ARGUMENTS_LIMIT = 100  # values in the arguments of one call, those in tuples among them
REBUILD = "torch._utils._rebuild_"  # torch's functions that make a tensor of a storage, sizes and strides
CALLED = ("torch.Size", "torch.device", "torch.serialization._get_layout")
CALLED_EMPTY = ("collections.OrderedDict", "collections.Counter")  # their arguments could hold any keys
ENCODE = "_codecs.encode"  # how protocol 2 spells bytes: encode(text, "latin1")
STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING")
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")
PUTS, GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")


class RefusedPickleError(CheckpointError):
    """A pickle that asks for more than tensors, or would cost more than its size. The message says which."""


class _Opaque:
    """A value that the checks need not know."""


class _List(_Opaque):
    """A list; its items are not followed."""


class _Dict(_Opaque):
    """A dict; its keys are checked when they are set."""

    filled = False


@dataclass(frozen=True)
class _Global(_Opaque):
    """A class or function, by its name."""

    name: str


def check_pickles(data: bytes, count: int, harmless: Collection[str]) -> None:
    """Raises RefusedPickleError unless each of the first `count` pickles in `data` is cheap to read.

    harmless: names of classes that may be called with anything, because the caller has stand-ins for them.
    Raises ValueError for what is not a pickle, or ends early.
    """
    stream = BytesIO(data)
    machine = _Machine(harmless)
    for _ in range(count):
        machine.run(stream)


class _Machine:
    """The stack and the memo of an unpickler, with stand-ins for all but strings, integers and tuples."""

    def __init__(self, harmless: Collection[str]) -> None:
        self.harmless = harmless
        self.opcodes = 0
        self.integer_keys = 0

    def run(self, stream: BytesIO) -> None:
        """Follows one pickle to its end."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.opcodes += 1
                if self.opcodes > OPCODES_LIMIT:
                    raise RefusedPickleError(f"It has more than {OPCODES_LIMIT} opcodes.")
                self._step(opcode.name, argument)
        except (IndexError, KeyError) as error:  # of the stack or the memo
            raise ValueError("its pickle is corrupt") from error

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in STRINGS or name in INTEGERS:
            stack.append(argument)
        elif name in PUTS:
            if argument > len(self.memo) + 1:  # pickle counts from 0, and did from 1
                raise RefusedPickleError(
                    f"It numbers its memo out of order ({argument} after {len(self.memo)} entries)."
                )
            self.memo[argument] = stack[-1]
        elif name in GETS:
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "GLOBAL":
            stack.append(_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            short, module = stack.pop(), stack.pop()
            stack.append(_global(str(module), str(short)))
        elif name in ("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "EMPTY_SET"):
            stack.append(None if name == "NONE" else _Opaque())
        elif name == "EMPTY_LIST":
            stack.append(_List())
        elif name == "EMPTY_DICT":
            stack.append(_Dict())
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "MARK":
            self.marked.append(stack)
            self.stack = []
        elif name == "TUPLE":
            items = self._pop_mark()
            self.stack.append(tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name == "APPEND":
            stack.pop()
        elif name == "APPENDS":
            self._pop_mark()
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set_items([key, value])
        elif name == "SETITEMS":
            self._set_items(self._pop_mark())
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            if not isinstance(stack.pop(), _Dict):
                raise RefusedPickleError("It gives an object a state that is not a dict.")
        elif name == "BINPERSID":
            _check_storage(stack.pop())
            stack.append(_Opaque())
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise RefusedPickleError(f"Unsupported opcode {name}: torch does not write it.")

    def _pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _set_items(self, items: list[Any]) -> None:
        for key in items[::2]:
            if not isinstance(key, (str, int)):
                raise RefusedPickleError("It has a dict with keys that are neither strings nor integers.")
            if isinstance(key, int):
                self.integer_keys += 1
                if abs(key) > LARGEST_KEY or self.integer_keys > INTEGER_KEYS_LIMIT:
                    raise RefusedPickleError(
                        f"It has a dict with the integer key {key}; at most {INTEGER_KEYS_LIMIT} integer keys, "
                        f"none above {LARGEST_KEY}, are read."
                    )
        if isinstance(self.stack[-1], _Dict):
            self.stack[-1].filled = True

    def _call(self, function: Any, arguments: Any) -> Any:
        """What calling `function` gives. Raises RefusedPickleError unless the call is a known one, and cheap."""
        if not isinstance(function, _Global):
            raise RefusedPickleError("It calls something that is not a function.")
        name = function.name
        if name in self.harmless:
            return _Opaque()
        if name in CALLED_EMPTY and arguments == ():
            return _Dict()
        if name == ENCODE and isinstance(arguments, tuple) and arguments[1:] == ("latin1",):
            return _Opaque()
        if (name in CALLED or name.startswith(REBUILD)) and _are_plain(arguments):
            return _Opaque()
        if name in (*CALLED, *CALLED_EMPTY, ENCODE) or name.startswith(REBUILD):
            raise RefusedPickleError(f"It calls {name} with arguments that no checkpoint needs.")
        raise RefusedPickleError(f"Unsupported call: {name}.")


def _global(module: str, name: str) -> _Global:
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return _Global(f"{module}.{name}")


def _check_storage(identity: Any) -> None:
    """Raises RefusedPickleError unless it is ("storage", class, key, device, numel); old files add a view."""
    fits = isinstance(identity, tuple) and 5 <= len(identity) <= 6 and _are_plain(identity)
    if not fits or identity[0] != "storage" or not isinstance(identity[2], str) or not isinstance(identity[4], int):
        raise RefusedPickleError("It refers to something outside it that is not a storage.")


def _are_plain(arguments: Any) -> bool:
    """Whether the arguments are few and short enough to be printed in an error: no lists, no dicts with entries."""
    left, seen = [arguments], 0
    while left:
        value = left.pop()
        seen += 1
        if isinstance(value, tuple):
            if seen + len(left) + len(value) > ARGUMENTS_LIMIT:
                return False
            left.extend(value)
        elif isinstance(value, _List) or (isinstance(value, _Dict) and value.filled):
            return False
    return isinstance(arguments, tuple)
