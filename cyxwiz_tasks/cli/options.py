"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cyxwiz_tasks.client import Client
from cyxwiz_tasks.errors import InvalidJob, NotFound
from cyxwiz_tasks.ids import parse_id
from cyxwiz_tasks.resources import Resources

Function = TypeVar("Function", bound=Callable[..., Any])

_UUID_CHARACTERS = 36
#: A prefix is looked for among so many of the newest jobs.
_SEARCHED_JOBS = 1000

_RESOURCE_HELP = {
    "nodes": "So many nodes at once: a gang.",
    "gpus": "GPUs for this job alone.",
    "gpu_memory": "Of each GPU: 24GB.., 24GB..80GB.",
    "gpu_model": "Names: A100|H100*.",
    "compute_capability": "Such as >=8.0.",
    "shared": "Share a GPU: takes --gpu-memory of it.",
    "cuda": "CUDA of the driver: >=12.4.",
    "driver": "Driver's version: >=550.",
    "cpus": "Cores taken while it runs.",
    "ram": "Memory taken while it runs: 16GB.",
    "disk": "Free disk: 100GB.",
    "device": "cuda or cpu.",
    "torch": "Version of torch: >=2.11.",
    "os": "Such as Linux.",
    "region": "Such as eu-*.",
    "node": "Name or id of a node.",
    "placement": "spread, pack or balanced.",
}


def json_option(function: Function) -> Function:
    """`--json`: the result, and an error, as JSON."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
        ctx.meta["cyxwiz.json"] = value
        return value

    option = click.option("--json", "as_json", is_flag=True, is_eager=True, callback=remember, help="Print JSON.")
    return option(function)


def resource_options(function: Function) -> Function:
    """`--gpus`, `--gpu-memory`, ...: one option for each requirement, gathered by `resources_of`."""
    added: Any = click.option("--exclude-node", "exclude_nodes", multiple=True, help="Not on this node.")(function)
    added = click.option(
        "--prefer", multiple=True, metavar="[WEIGHT:]FIELD=VALUE", help="Rather there: 3:gpu_model=H100*."
    )(added)
    added = click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A node's label.")(added)
    for name, text in reversed(_RESOURCE_HELP.items()):
        flag = "--" + name.replace("_", "-")
        if name == "shared":
            added = click.option(flag, name, is_flag=True, default=None, help=text)(added)
        else:
            added = click.option(flag, name, metavar="N" if name in ("nodes", "gpus", "cpus") else "TEXT", help=text)(
                added
            )
    return added  # type: ignore[no-any-return]


def resources_of(options: dict[str, Any], base: dict[str, Any] | None = None) -> Resources:
    """Resources out of `base` and the options of `resource_options`, which are removed from `options`.

    Raises InvalidJob that names the field.
    """
    given = {name: options.pop(name) for name in _RESOURCE_HELP}
    labels = dict(_label(text) for text in options.pop("labels"))
    chosen = {name: value for name, value in given.items() if value is not None}
    chosen |= {"labels": labels} if labels else {}
    preferred = dict(_preference(text) for text in options.pop("prefer"))
    chosen |= {"prefer": preferred} if preferred else {}
    excluded = options.pop("exclude_nodes")
    chosen |= {"exclude_nodes": excluded} if excluded else {}
    if base is not None and not isinstance(base, dict):
        raise InvalidJob("resources", f"{str(base)[:60]!r} is not an object", 'Write {"gpu_memory": "24GB.."}')
    return Resources.parse((base or {}) | chosen)


def parse_json(name: str, text: str, kind: type[Any], example: str) -> Any:
    """The list, or object, of an option that takes JSON. Raises InvalidJob that names it."""
    hint = f"Write for example '{example}'"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidJob(name, f"{text[:60]!r} is no JSON ({error})", hint) from None
    if not isinstance(value, kind):
        raise InvalidJob(name, f"{text[:60]!r} is not {'a list' if kind is list else 'an object'}", hint)
    return value


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def find_id(client: Client, text: str) -> str:
    """The id of the one job whose id starts or ends like this.

    Raises NotFound if there is none, InvalidJob if there are several.
    """
    if len(text) == _UUID_CHARACTERS:
        return parse_id(text)
    _must_say_something("id", text)
    wanted = text.lower()
    found = [row["id"] for row in client.jobs(limit=_SEARCHED_JOBS) if _matches(row["id"], wanted)]
    if not found:
        raise NotFound(f"no job has an id that starts or ends with {text!r}: `cyxwiz jobs` lists them")
    if len(found) > 1:
        raise InvalidJob(
            "id", f"{text!r} fits {len(found)} jobs", f"Write more of it, or its last characters: {found[0]}"
        )
    return str(found[0])


def find_array(client: Client, text: str) -> str:
    """The id of the one array whose id starts or ends like this. Raises NotFound, InvalidJob if there are several."""
    if len(text) == _UUID_CHARACTERS:
        return parse_id(text)
    _must_say_something("array", text)
    wanted, rows = text.lower(), client.jobs(limit=_SEARCHED_JOBS)
    found = {row["array_id"] for row in rows if row["array_id"] and _matches(row["array_id"], wanted)}
    if not found:
        raise NotFound(f"no array of the newest jobs has an id that starts or ends with {text!r}: write its whole id")
    if len(found) > 1:
        raise InvalidJob("array", f"{text!r} fits {len(found)} arrays", "Write more of it")
    return str(found.pop())


def after_of(client: Client, text: str) -> tuple[str, str]:
    """What a job comes after, out of `JOB` or `JOB:KIND`, or those of an array. Raises NotFound, InvalidJob."""
    job, _, kind = text.partition(":")
    return find_id(client, job), kind or "ok"


def _must_say_something(field: str, text: str) -> None:
    """Raises InvalidJob for "", which every id starts with: of a shell's variable that was never set, say."""
    if not text:
        raise InvalidJob(field, "is empty", "Write an id, or the start or the end of one")


def _matches(job_id: str, wanted: str) -> bool:
    # Ids begin with their time, so those of one minute begin alike: their ends tell them apart.
    return job_id.startswith(wanted) or job_id.endswith(wanted)


def _preference(text: str) -> tuple[str, float]:
    """ "3:region=eu-*" weighs 3, "region=eu-*" 1."""
    weight, sign, wish = text.partition(":")
    try:
        return (wish, float(weight)) if sign else (text, 1.0)
    except ValueError:
        return text, 1.0


def _label(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InvalidJob("labels", f"{text!r} has no key or no value", "Write --label rack=a1")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
