"""What another process of the job raised, where no more of it came than its traceback as text.

torch's DataLoader raises the class that its worker raised, but with that text for its only argument, so that an OSError
has lost its number; `torch.multiprocessing.spawn` raises a class of its own with it.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress

_BEGIN = re.compile(r"\s*-- Process \d+ terminated with the following error:\n|Caught \w+ in .*\.\nOriginal Traceback ")
_TOLD = re.compile(
    r"^(?:Original )?Traceback \(most recent call last\):\n(?: .*\n)+(?P<name>[A-Za-z_][\w.]*)(?:: (?P<text>.*))?$",
    re.MULTILINE,
)
_FROM = "The above exception was the direct cause of the following exception:"
_WHILE = "During handling of the above exception, another exception occurred:"
_ERRNO = re.compile(r"\[Errno (\d+)\] ")


def relayed(error: BaseException) -> BaseException | None:
    """The exception that the text of this one tells of, with those that it was raised from; None if it tells of none.

    Of a text with several lines it has the first, and where its class is not known here, one of that name.
    """
    text, told, end = str(error), None, 0
    if not _BEGIN.match(text):
        return None
    for found in _TOLD.finditer(text):
        one, between = _made(found["name"], found["text"] or ""), text[end : found.start()]
        if _FROM in between:
            one.__cause__ = told
        elif _WHILE in between:
            one.__context__ = told
        told, end = one, found.end()
    return told


def _made(name: str, text: str) -> BaseException:
    module, _, short = name.rpartition(".")
    kind = getattr(sys.modules.get(module or "builtins"), short, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        number = _ERRNO.match(text) if issubclass(kind, OSError) else None
        with suppress(Exception):  # whatever those raise that take other arguments than a text
            return OSError(int(number[1]), text) if number is not None else kind(text)
    made: BaseException = type(short, (Exception,), {"__module__": module})(text)
    return made
