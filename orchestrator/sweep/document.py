"""Strict YAML text → plain data, with every fault and its line.

Pure. kubectl reads the same file as YAML 1.1 and hides from the cluster what it changed, so whatever 1.1
and 1.2 read differently is refused, with the way to write it; so are null, anchors, aliases, tags, and keys
given twice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

SIZE_LIMIT = 2**20
"""Bytes of a file."""
DEPTH_LIMIT = 16
TEXT_LIMIT = 4096
"""Characters of a key or value."""
FAULTS_SHOWN = 100


class Refused:
    """Stands where a refused value was, so that the rest of the file can still be checked."""

    def __repr__(self) -> str:
        return "<refused>"


REFUSED: Final = Refused()

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 20 times as fast where libyaml is there

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SAY_QUOTE_OR_BOOL = "write true or false, or quote it if it is text"
_SAY_NUMBER = "write a plain decimal number, or quote it if it is text"
_AMBIGUOUS: Final = (
    (re.compile(r"y|n|yes|no|on|off", re.I), "is a truth value to some readers", _SAY_QUOTE_OR_BOOL),
    (re.compile(r"[-+]?0[0-9_]+"), "is an octal number to some readers", _SAY_NUMBER),
    (re.compile(r"[-+]?0([xX][0-9a-fA-F_]+|o[0-7_]+|b[01_]+)"), "is not decimal", _SAY_NUMBER),
    (re.compile(r"[-+]?\.?[0-9][0-9_.]*_[0-9_.]*([eE][-+]?[0-9]+)?"), "has a `_`", _SAY_NUMBER),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
        "is a number in base 60 to some readers",
        "quote it",
    ),
    (re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?"), "is a date to some readers", "quote it"),
    (re.compile(r"[-+]?\.(inf|nan)", re.I), "must be a finite number", _SAY_NUMBER),
    (re.compile(r"=|<<"), "has a meaning of its own to some readers", "quote it"),
)


@dataclass
class _Open:
    """A list or mapping being filled."""

    path: str
    value: dict[str, Any] | list[Any]
    line: int
    lines: dict[str, int] = field(default_factory=dict)
    key: str | None = None
    wants_value: bool = False


def parse(text: str, place: str) -> tuple[Any, list[str]]:
    """(the document as dict, list, str, int, float, bool; its faults as `<place>: line <n>: …`).

    A refused value is `REFUSED` in the document. With a fault of syntax the document is `REFUSED` whole.
    """
    if len(text.encode("utf-8", "surrogatepass")) > SIZE_LIMIT:
        return REFUSED, [
            f"{place}: file is too large, got {len(text)} characters; keep it under {SIZE_LIMIT} bytes"
        ]
    reader = _Reader(place)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except (yaml.YAMLError, UnicodeError) as error:
        reader.faults.append(_syntax_fault(place, error))
        return REFUSED, reader.faults
    except _TooDeepError:
        return REFUSED, reader.faults
    if reader.documents != 1:
        reader.root = REFUSED
        got = reader.documents or "an empty file"
        reader.faults.append(f"{place}: must hold one document, got {got}; write one sweep a file")
    if len(reader.faults) > FAULTS_SHOWN:
        more = len(reader.faults) - FAULTS_SHOWN
        reader.faults[FAULTS_SHOWN:] = [f"{place}: and {more} more faults; correct these first"]
    return reader.root, reader.faults


class _TooDeepError(Exception):
    """The document nests too deeply to go on."""


class _Reader:
    """Builds the data from parser events, without recursion."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.faults: list[str] = []
        self.root: Any = REFUSED
        self.documents = 0
        self._stack: list[_Open] = []

    def take(self, event: yaml.Event) -> None:
        """One event of the parser, in order."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
        elif isinstance(event, yaml.AliasEvent):
            self._fault(line, f"an alias is not allowed, got *{event.anchor}; write the value out")
            self._put(REFUSED, line)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_node(event, line)
            self._scalar(event, line)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._check_node(event, line)
            self._open(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self._stack.pop()
            self._put(done.value, done.line)

    def _fault(self, line: int, text: str) -> None:
        self.faults.append(f"{self.place}: line {line}: {text}")

    def _check_node(self, event: yaml.NodeEvent, line: int) -> None:
        if event.anchor:
            self._fault(line, f"an anchor is not allowed, got &{event.anchor}; write the value out each time")
        tag = getattr(event, "tag", None)
        if tag:
            self._fault(line, f"a tag is not allowed, got {tag}; write the value alone")

    def _open(self, event: yaml.Event, line: int) -> None:
        if len(self._stack) >= DEPTH_LIMIT:
            self._fault(line, f"nests too deeply, got more than {DEPTH_LIMIT} levels; flatten it")
            raise _TooDeepError
        value: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        if self._stack and self._wants_key():
            self._fault(line, "a key must be a string, got a list or mapping; write a name")
        self._stack.append(_Open(self._path(), value, line))

    def _wants_key(self) -> bool:
        top = self._stack[-1]
        return isinstance(top.value, dict) and not top.wants_value

    def _path(self) -> str:
        if not self._stack:
            return ""
        top = self._stack[-1]
        if isinstance(top.value, list):
            return f"{top.path}[{len(top.value)}]"
        return f"{top.path}.{top.key}".lstrip(".")

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        path = self._path()
        is_key = bool(self._stack) and self._wants_key()
        where = "key" if is_key else path or "document"
        value, fault = resolve(event.value, plain=bool(event.implicit[0]))
        if fault:
            self._fault(line, f"{where}: {fault}")
        elif is_key and not isinstance(value, str):
            self._fault(line, f"key: must be a string, got {event.value!r}; quote it")
        self._put(event.value if is_key else value, line)

    def _put(self, value: Any, line: int) -> None:
        if not self._stack:
            self.root = value
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(value)
        elif not top.wants_value:
            top.key = value if isinstance(value, str) else None
            top.wants_value = True
            self._check_twice(top, line)
        else:
            if top.key is not None:
                top.value.setdefault(top.key, value)
            top.wants_value = False

    def _check_twice(self, top: _Open, line: int) -> None:
        if top.key is None:
            return
        first = top.lines.setdefault(top.key, line)
        if top.key in top.value:
            path = f"{top.path}.{top.key}".lstrip(".")
            self._fault(line, f"{path}: key is given twice, got it on line {first} too; keep one")


def resolve(text: str, *, plain: bool) -> tuple[Any, str | None]:
    """(value, None), or (REFUSED, what is wrong) of one scalar; only plain ones can be more than text."""
    if len(text) > TEXT_LIMIT:
        return REFUSED, f"is too long, got {len(text)} characters; keep it under {TEXT_LIMIT}"
    if not plain:
        return text, None
    if _NULL.fullmatch(text):
        return REFUSED, f"null is not allowed, got {text or 'nothing'}; give a value or leave the key out"
    if _BOOL.fullmatch(text):
        return text.lower() == "true", None
    for pattern, why, remedy in _AMBIGUOUS:
        if pattern.fullmatch(text):
            return REFUSED, f"{why}, got {text}; {remedy}"
    if _INT.fullmatch(text):
        if len(text) > 18:
            return REFUSED, f"is too large a number, got {text[:24]}…; at most 17 digits are kept"
        return int(text), None
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            return REFUSED, f"must be a finite number, got {text}; {_SAY_NUMBER}"
        return number, None
    return text, None


def _syntax_fault(place: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    return f"{place}: {where}is not YAML, got {problem}{f' {context}' if context else ''}; correct the syntax"
