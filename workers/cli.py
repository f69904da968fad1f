"""`cyxwiz worker`: run a node on this machine."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import SecretStr

from cyxwiz_tasks.settings import Settings, settings

if TYPE_CHECKING:
    from workers.node import JobPaths

_EXISTING_FOLDER = click.Path(exists=True, file_okay=False, resolve_path=True)


@click.command()
@click.option("--name", help="What people call this node. Default: the machine's name.")
@click.option(
    "--slots", type=click.IntRange(1, 1024), help="Jobs at a time. Default: one for each GPU, or one without any."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label that jobs can ask for.")
@click.option(
    "--share", default="1/1", show_default=True, help="Part of the machine, where several nodes run on it: 1/2, 2/2."
)
@click.option("--region", help="Where this machine stands; jobs can ask for it.")
@click.option("--address", help="Where other nodes reach it. Default: the address from which it reaches the broker.")
@click.option(
    "--accept", help="Whose jobs it takes: 'owner in [\"lab-a\"] and priority >= normal'. Default: everybody's."
)
@click.option("--hours", help='When it takes new work: "Mon-Fri 18:00-08:00, Sat-Sun". Default: always.')
@click.option("--timezone", help="Of --hours, such as Europe/Berlin. Default: this machine's.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    type=_EXISTING_FOLDER,
    help="Folder with the jobs' modules. Default: the working directory.",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="MODULE",
    help="Import it once, for all jobs, which then start sooner. A change of it is seen after a restart.",
)
@click.option(
    "--data",
    "data",
    multiple=True,
    type=_EXISTING_FOLDER,
    help="Folder below which jobs may read data sets. Default: the folders of --path.",
)
@click.option(
    "--submitted-paths", is_flag=True, help="Import jobs from the submitter's own folder: for one person's machine."
)
@click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), help="The node's folder. Default: CYXWIZ_HOME."
)
def worker(home: Path | None, **options: Any) -> None:
    """Run a node: take jobs from the queue and run each in a process of its own.

    The broker is CYXWIZ_BROKER_URL, or the stack that `cyxwiz up` runs here. A first SIGTERM or Ctrl-C gives running
    jobs back to the queue and ends in order; a second ends at once.
    """
    _set_up_logging()
    chosen = settings()
    if home is not None:
        # The node's own folder is elsewhere, the stack is still the one that runs here.
        chosen = chosen.model_copy(update={"home": home.resolve(), "broker_url": SecretStr(chosen.broker())})
    sys.exit(_run(chosen, NodeOptions(**options)))


@dataclass(frozen=True)
class NodeOptions:
    """What `cyxwiz worker` was told of its node, as it was written."""

    name: str | None
    slots: int | None
    labels: tuple[str, ...]
    share: str
    region: str | None
    address: str | None
    accept: str | None
    hours: str | None
    timezone: str | None
    paths: tuple[str, ...]
    preload: tuple[str, ...]
    data: tuple[str, ...]
    submitted_paths: bool

    @property
    def job_paths(self) -> JobPaths:
        from workers.node import JobPaths

        code = self.paths or (str(Path.cwd()),)
        return JobPaths(code=code, data=self.data or code, trust_submitters=self.submitted_paths, preload=self.preload)


def _run(chosen: Settings, options: NodeOptions) -> int:
    from workers.accept import checked_accept
    from workers.agent import run_node
    from workers.capabilities import detect_capability
    from workers.checkpoint_place import checkpoint_place
    from workers.gpus import find_gpus
    from workers.hours import checked_hours
    from workers.labels import parse_labels
    from workers.measurements import measured
    from workers.network import address_towards
    from workers.node_folder import NodeFolder
    from workers.share import Share, SharedGpus

    # Fails here, with a sentence, where there is no stack.
    address = options.address or address_towards(chosen.broker())
    part, labels = Share.parse(options.share), parse_labels(options.labels)
    conditions = checked_accept(options.accept) | checked_hours(options.hours, options.timezone)
    gpus = SharedGpus(find_gpus(), part)
    folder = NodeFolder(chosen.home, options.name)
    capability = detect_capability(
        gpus, folder.path, slots=options.slots, region=options.region, labels=labels, address=address
    )
    capability = capability.model_copy(update=conditions | {"checkpoint_place": checkpoint_place(chosen)})
    _drop_credentials()
    return run_node(folder, part.of_capability(measured(capability, folder.path)), gpus, options.job_paths, chosen)


def _drop_credentials() -> None:
    """No process that this one starts can inherit them; jobs get a list of their own besides."""
    for name in ("CYXWIZ_BROKER_URL", "CYXWIZ_DATABASE_URL"):
        os.environ.pop(name, None)


def _set_up_logging() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    # A job's end is told once, in the node's own words; a failure's traceback is in the record and not in this log.
    logging.getLogger("celery.app.trace").setLevel(logging.CRITICAL)
    logging.getLogger("celery.worker").setLevel(logging.WARNING)
