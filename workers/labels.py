"""Labels that whoever starts a node gives it: `--label tier=gold --label nvme=true`."""

import re
from collections.abc import Iterable

from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.resources import LabelValue

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")


def parse_labels(texts: Iterable[str]) -> dict[str, LabelValue]:
    """Names and values out of "name=value" texts; a later one wins.

    true and false are booleans, numbers are numbers, all else is text. Raises InvalidSettings that shows the form.
    """
    labels = dict[str, LabelValue]()
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()) or not value.strip():
            raise InvalidSettings(f'label "{text}": write name=value, such as tier=gold or nvme=true')
        labels[name.strip()] = _typed(value.strip())
    return labels


def _typed(value: str) -> LabelValue:
    if value in ("true", "false"):
        return value == "true"
    if re.fullmatch(r"-?\d+", value):
        return int(value)
    if re.fullmatch(r"-?\d+\.\d+", value):
        return float(value)
    return value
