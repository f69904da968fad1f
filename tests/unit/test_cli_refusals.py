"""Every refusal that the command line has without a stack, as a new user meets it: a table.

Each names the field or option, says what is wrong and what to write, in one line, with exit status 2 (3: no stack).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cyxwiz_tasks.cli.main import NO_STACK, USAGE, main
from cyxwiz_tasks.settings import settings

JOB = "01234567-89ab-7def-8123-0123456789ab"
TRAIN = "submit --model cnn --dataset digits "
AWAY = {"CYXWIZ_BROKER_URL": "redis://127.0.0.1:1/0"}

#: the command, the field or option that is named, and words of what it says
FIELDS: list[tuple[str, str, str]] = [
    ("submit", "model", "is missing. Write --model cnn"),
    ("submit --model cnn", "dataset", "is missing. Write --model cnn --dataset digits"),
    ("submit --model resnot --dataset digits", "model", "did you mean 'resnet18'"),
    ("submit --model cnn --dataset digitz", "dataset", "did you mean 'digits'"),
    (TRAIN + "--epochs 0", "epochs", "must be more than 0, not '0'. Write for example epochs=5"),
    (TRAIN + "--epochs many", "epochs", "must be a whole number (an integer), not 'many'"),
    (TRAIN + "--learning-rate fast", "learning_rate", "must be a number, not 'fast'"),
    (TRAIN + "--batch-size 0", "batch_size", "Write for example batch_size=32"),
    (TRAIN + "--optimizer sdg", "optimizer", "must be one of 'sgd', 'adam' or 'adamw', not 'sdg'"),
    (TRAIN + "--model-options {x", "model_options", "is no JSON"),
    (TRAIN + "--model-options [1]", "model_options", "is not an object. Write for example '{\"hidden\": [128, 64]}'"),
    (TRAIN + "--validation-split 0 --early-stopping-patience 3", "early_stopping_patience", "validation_split=0.1"),
    (
        TRAIN + "--gpu-memory '24 gigs'",
        "resources.gpu_memory",
        'is not a size: write a number and a unit, such as "24GB"',
    ),
    (TRAIN + "--gpu-memory 80GB..24GB", "resources.gpu_memory", "write the smaller size first"),
    (TRAIN + "--gpu-memory ..", "resources.gpu_memory", 'has no end: write "24GB.."'),
    (
        TRAIN + "--gpus two",
        "resources.gpus",
        "must be a whole number (an integer), not 'two'. Write for example gpus=1",
    ),
    (TRAIN + "--gpus -1", "resources.gpus", "must be 0 or more, not '-1'"),
    (TRAIN + "--gpus 0 --gpu-memory 8GB", "resources", "gpus=0 and gpu_memory contradict each other: leave one"),
    (TRAIN + "--cpus 99999999", "resources.cpus", "must be 65536 or less"),
    (TRAIN + "--ram x", "resources.ram", "is not a size"),
    (TRAIN + "--disk 1ZB", "resources.disk", "is not a size"),
    (TRAIN + "--compute-capability new", "resources.compute_capability", 'write ">=8.0"'),
    (TRAIN + "--cuda '>>12'", "resources.cuda", "is not a bound on a version"),
    (TRAIN + "--gpu-model 'A100|'", "resources.gpu_model", 'write "A100|H100*"'),
    (TRAIN + "--device tpu", "resources.device", "must be one of 'cuda' or 'cpu', not 'tpu'"),
    (TRAIN + "--device cpu --gpus 1", "resources", "contradict each other"),
    (TRAIN + "--shared", "resources", 'shared=True needs gpu_memory, such as "6GB"'),
    (TRAIN + "--placement heap", "resources.placement", "must be one of 'balanced', 'spread' or 'pack', not 'heap'"),
    (TRAIN + "--label tier", "labels", "has no key or no value. Write --label rack=a1"),
    (TRAIN + "--prefer nothing", "resources.prefer", "write field=value"),
    (TRAIN + "--prefer gpu_model=A100", "resources", "the job asks for none: set gpus=1"),
    (TRAIN + "--prefer owner=ann", "resources.prefer", "cannot be preferred. There are"),
    (TRAIN + "--prefer -1:region=eu", "resources.prefer", "write a number above 0"),
    (TRAIN + "--grid lr", "grid", "Write --grid learning_rate=0.1,0.01"),
    (TRAIN + "--grid learning_rate=", "grid", "has no name or no values"),
    (TRAIN + "--at-most 2", "at_most", "is for an array. Write --grid"),
    (TRAIN + "--early-stopping {}", "early_stopping", "is for an array"),
    (TRAIN + "--grid seed=0,1 --early-stopping [1]", "early_stopping", "is not an object"),
    (TRAIN + "--grid seed=0,1 --early-stopping {}", "early_stopping", "names no metric"),
    (
        TRAIN + """--grid seed=0,1 --early-stopping '{"metric":"x","rung_epochs":[3,1]}'""",
        "early_stopping.rung_epochs",
        "rise",
    ),
    (
        TRAIN + """--grid seed=0,1 --early-stopping '{"metric":"x","odd":1}'""",
        "early_stopping.odd",
        "is no field of it",
    ),
    ("submit --task lab", "task", "names no function. Write --task MODULE:FUNCTION"),
    ("submit --task :add", "task", "names no function. Write --task MODULE:FUNCTION"),
    ("submit --task .lab:add", "task", "names no function. Write --task MODULE:FUNCTION"),
    ("submit --task nolab:add", "task", "No module named 'nolab'. Run this where `python -c 'import nolab'` works"),
    ("submit --task refused:nothing", "task", "refused has no 'nothing'. See its spelling"),
    ("submit --task refused:plain", "task", "is no job. Put @job before it"),
    ("submit --task refused:add --args 1", "args", "is not a list. Write for example '[1, 2]'"),
    ("submit --task refused:add --args [1,", "args", "is no JSON"),
    ("submit --task refused:add --kwargs [1]", "kwargs", "is not an object"),
    ("""submit --task refused:add --kwargs '{"c":1}'""", "arguments", "unexpected keyword argument 'c'. It takes (a)"),
    ("submit --task refused:add", "arguments", "missing 1 required positional argument: 'a'. It takes (a)"),
    ("submit --task refused:add --grid c=1,2", "arguments", "unexpected keyword argument 'c'"),
    ("submit --task refused:add --epochs 3", "epochs", "is a field of trainings, not of --task. Pass it in --kwargs"),
    ("submit --spec bad.json", "spec", "cannot be read"),
    ("submit --spec list.json", "spec", "holds no object. Write"),
    ("submit --spec memory.json", "resources", "'24GB' is not an object. Write {\"gpu_memory\""),
    ("submit --spec memories.json", "resources.gpu_memory", "is not a size"),
    ("submit --spec bad.toml", "spec", "TOML in a file *.toml"),
    (
        "schedule add n --cron '0 3 * * *' -- --model cnn --dataset digits --after x",
        "after",
        "are sent once. Leave it out",
    ),
    ("limit ann --weight none", "--weight", "is not a number: write one, such as --weight 8"),
    ("limit ann --running x", "--running", "x is not a whole number: write one, such as --running 8"),
    ("quota set lab --lend-gpus x", "--lend-gpus", "is not a whole number: write 0 or more, or none"),
    ("cancel", "ids", "are missing. Write cyxwiz cancel JOB"),
    ("plan --gpus x", "resources.gpus", "must be a whole number"),
    ("up --only cake", "--only", "choose among postgres, redis, scheduler"),
    ("up --only scheduler", "--only", "a scheduler needs postgres: add it, or set CYXWIZ_DATABASE_URL"),
    ("up --listen 1.2.3.4 --only postgres", "--listen", "--only leaves out"),
]

#: what Click itself finds out about options: the command, and words of it
USES: list[tuple[str, str]] = [
    ("jobz", "No such command 'jobz'. Did you mean 'job'?"),
    ("zzz", "`cyxwiz --help` lists them."),
    ("job", "Missing argument 'ID'"),
    ("jobs --state odd", "'odd' is not one of 'pending', 'assigned'"),
    ("jobs -n 0", "0 is not in the range"),
    (TRAIN + "--grid seed=0,1 --at-most 0", "'--at-most': 0 is not in the range"),
    ("submit --spec nofile.json", "File 'nofile.json' does not exist"),
    ("schedule add n --cron '0 3 * * *'", "Missing argument '-- SUBMIT_OPTIONS'"),
    ("schedule add n --cron '0 3 * * *' -- --nonsense", "Usage: cyxwiz submit [OPTIONS]"),
    ("limit ann", "give --running, --waiting, --per-minute or --weight"),
    ("quota set lab", "give --gpus, --cpus or another option"),
    ("quota set lab --gpus -1", "'--gpus': -1 is not in the range"),
    ("up --path /nowhere", "Directory '/nowhere' does not exist"),
    ("worker --path /nowhere", "Directory '/nowhere' does not exist"),
    ("worker --slots 0", "'--slots': 0 is not in the range"),
]

#: settings and nodes: the command, the environment, exit status, words
SETTINGS: list[tuple[str, dict[str, str], int, str]] = [
    ("jobs", {}, NO_STACK, "start one with `cyxwiz up`, or set CYXWIZ_BROKER_URL"),
    ("worker", {}, NO_STACK, "start one with `cyxwiz up`, or set CYXWIZ_BROKER_URL"),
    ("scheduler", {}, NO_STACK, "start one with `cyxwiz up`"),
    ("flower", {}, NO_STACK, "start one with `cyxwiz up`"),
    ("db upgrade", {}, NO_STACK, "or set CYXWIZ_DATABASE_URL"),
    ("jobs", AWAY, NO_STACK, "the Redis at 127.0.0.1:1/0 does not answer"),
    ("jobs", {"CYXWIZ_BROKER_URL": "nonsense"}, NO_STACK, "CYXWIZ_BROKER_URL is no URL of a Redis"),
    ("jobs", {"CYXWIZ_SUBMIT_TIMEOUT_SECONDS": "x"}, USAGE, "CYXWIZ_SUBMIT_TIMEOUT_SECONDS: must be a number, not 'x'"),
    ("jobs", {"CYXWIZ_HEARTBEAT_SECONDS": "-1"}, USAGE, "CYXWIZ_HEARTBEAT_SECONDS: must be more than 0"),
    ("jobs", {"CYXWIZ_SCORE_WEIGHTS": "1,2"}, USAGE, "CYXWIZ_SCORE_WEIGHTS: '1,2' is not four numbers"),
    ("jobs", {"CYXWIZ_PLACEMENT": "heap"}, USAGE, "CYXWIZ_PLACEMENT: must be one of 'balanced', 'spread' or 'pack'"),
    (
        "db current",
        {"CYXWIZ_DATABASE_URL": "nonsense"},
        USAGE,
        "CYXWIZ_DATABASE_URL: is not a URL: write postgresql://",
    ),
    ("db check", {"CYXWIZ_DATABASE_URL": "mysql://x/y"}, USAGE, "is not one of PostgreSQL: write postgresql://"),
    ("db check", {"CYXWIZ_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}, NO_STACK, "PostgreSQL does not answer"),
    ("up", {"CYXWIZ_HOME": "/proc/x"}, USAGE, "CYXWIZ_HOME: /proc/x cannot be made"),
    ("worker", AWAY | {"CYXWIZ_FAKE_GPUS": "many"}, USAGE, 'CYXWIZ_FAKE_GPUS: "many" declares no GPUs: write'),
    ("worker --share 2/1", AWAY, USAGE, '--share: "2/1" is no part of a machine: write "1/2"'),
    ("worker --home /proc/x", AWAY, USAGE, "cannot be made"),
    ("worker --name 'a b'", AWAY, USAGE, '--name: "a b" is not a name: use letters'),
    ("worker --label x", AWAY, USAGE, 'label "x": write name=value'),
    ("worker --accept 'owner in'", AWAY, USAGE, "--accept: at character 1: invalid syntax. Write for example"),
    ("worker --accept 'colour == 1'", AWAY, USAGE, '--accept: at character 1: "colour" is not known. Known are owner'),
    ("worker --hours late", AWAY, USAGE, '--hours: "late" is no day: write Mon'),
    ("worker --hours 'Mon 8:00-25:00'", AWAY, USAGE, '--hours: "25:00" is no time of day: write 00:00 to 24:00'),
    ("worker --hours Mon --timezone Mars/Base", AWAY, USAGE, '"Mars/Base" is no time zone'),
    ("worker --timezone UTC", AWAY, USAGE, "of what? Write --hours as well"),
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with some files, a home without a stack, and no settings."""
    (tmp_path / "bad.json").write_text("{nope")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "memory.json").write_text('{"resources": "24GB"}')
    (tmp_path / "memories.json").write_text('{"resources": {"gpu_memory": ["24GB"]}}')
    source = "from cyxwiz_tasks import job\n@job()\ndef add(ctx, a): return a\ndef plain(): pass\n"
    (tmp_path / "refused.py").write_text(source)
    monkeypatch.setattr("workers.cli._set_up_logging", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CYXWIZ_HOME", str(tmp_path / "home"))
    for name in ("CYXWIZ_BROKER_URL", "CYXWIZ_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def _run(command: str, **env: str) -> Result:
    settings.cache_clear()
    try:
        return CliRunner().invoke(main, shlex.split(command), env=env, prog_name="cyxwiz")
    finally:
        settings.cache_clear()


#: of submissions, which are checked before they are sent: to a broker that is not there
SENT: list[tuple[str, str, str]] = [
    (TRAIN + "--priority urgent", "priority", 'Write one of "low", "normal", "high", "critical"'),
    (TRAIN + "--time-limit soon", "time_limit", 'Write "30m", "4h", "2d" or a number of seconds'),
    (TRAIN + "--time-limit -5m", "time_limit", "is not a duration"),
    (TRAIN + "--id abc", "id", "is not a UUID. Leave it out to get one"),
    (TRAIN + "--owner=", "owner", "Write a text of 1 to 200 printable characters"),
    (TRAIN + "--idempotency-key=", "idempotency_key", "Write a text of 1 to 200"),
    (TRAIN + f"--after {JOB}:match", "after", "between two arrays, and this is one job. Write ok, any or fail"),
    (TRAIN + f"--after {JOB}:often", "after", "'often' is no kind of dependency. There are ok, any, fail, match"),
    (TRAIN + "--grid rate=1,2", "rate", "is no field of a TrainingJob"),
    (TRAIN + "--grid learning_rate=a,b", "learning_rate", "must be a number, not 'a'"),
    ("cancel ''", "id", "is empty. Write an id, or the start or the end of one"),
    ("cancel --array ''", "array", "is empty. Write an id"),
    (TRAIN + "--after :any", "id", "is empty"),
    ("plan --priority urgent", "priority", "is not a priority"),
    ("limit ann --per-minute nan", "per_minute", "nan is no number that can be kept"),
    ("limit ann --weight inf", "weight", "inf is no number that can be kept"),
    ("quota set lab --weight nan", "weight", "nan is no number that can be kept"),
    ("drain x --deadline soon", "deadline", "is not a duration"),
    ("schedule add '' --cron '0 3 * * *' -- --model cnn --dataset digits", "name", "Write a text of 1 to 200"),
]


@pytest.mark.parametrize(("command", "field", "says"), FIELDS + SENT, ids=lambda text: text[:60])
def test_what_is_wrong_with_a_field_is_one_line_that_names_it(command: str, field: str, says: str) -> None:
    found = _run(command, **AWAY)
    assert found.exit_code == USAGE, found.output
    assert found.stderr.startswith(f"error: {field}: "), found.output
    assert found.stderr.count("\n") == 1
    assert says in found.stderr


@pytest.mark.parametrize(("command", "says"), USES, ids=lambda text: text[:60])
def test_a_wrong_use_of_a_command_says_how_to_use_it(command: str, says: str) -> None:
    found = _run(command)
    assert found.exit_code == USAGE, found.output
    assert says in found.stderr
    assert "Try 'cyxwiz" in found.stderr


@pytest.mark.parametrize(("command", "env", "code", "says"), SETTINGS, ids=lambda value: str(value)[:60])
def test_what_is_wrong_outside_is_one_line_too(command: str, env: dict[str, str], code: int, says: str) -> None:
    found = _run(command, **env)
    assert found.exit_code == code, found.output
    assert found.stderr.splitlines()[-1].startswith("error: ")
    assert says in found.stderr


def test_with_json_it_is_json() -> None:
    found = _run("plan --gpus x --json")
    assert json.loads(found.stderr)["error"] == "InvalidJob"
    found = _run("schedule add n --json --cron '0 3 * * *' -- --model cnn")
    assert json.loads(found.stderr)["message"].startswith("dataset: is missing")
