import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.training.names import MODELS, suffix_of
from cyxwiz_tasks.training_job import TrainingJob

GOOD = {"model": "cnn", "dataset": "digits"}


def test_defaults_survive_json():
    job = TrainingJob(**GOOD)
    assert (job.epochs, job.batch_size, job.optimizer, job.validation_split) == (1, 32, "adamw", 0.1)
    assert TrainingJob(**json.loads(job.model_dump_json())) == job


def test_is_frozen():
    with pytest.raises(ValidationError):
        TrainingJob(**GOOD).epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"model": "resnet"}, "model", ["did you mean 'resnet18'", *MODELS, "package.module:factory"]),
        ({"model": "os;rm"}, "model", ["unknown model"]),
        ({"dataset": "digit"}, "dataset", ["did you mean 'digits'", "mnist", "fashion-mnist"]),
        ({"dataset": "ftp://host/x.csv"}, "dataset", ["'ftp' is not allowed", "s3"]),
        ({"dataset": "zip://x.csv::file:///etc/x.zip"}, "dataset", ["chains"]),
        ({"dataset": "dir::/data/x.csv"}, "dataset", ["chains"]),
        ({"dataset": "synthetic://sounds"}, "dataset", ["synthetic://images"]),
        ({"dataset": "s3://bucket/file.xlsx"}, "dataset", [".parquet"]),
        ({"dataset": "data/file.xlsx"}, "dataset", [".csv"]),
        ({"epochs": 0}, "epochs", ["more than 0", "epochs=5"]),
        ({"epochs": "many"}, "epochs", ["integer", "epochs=5"]),
        ({"batch_size": -1}, "batch_size", ["more than 0", "batch_size=32"]),
        ({"learning_rate": float("nan")}, "learning_rate", ["finite"]),
        ({"optimizer": "lion"}, "optimizer", ["'sgd', 'adam' or 'adamw'"]),
        ({"precision": "fp8"}, "precision", ["bf16"]),
        ({"validation_split": 1.0}, "validation_split", ["less than 1"]),
        ({"learnin_rate": 0.1}, "learnin_rate", ["did you mean 'learning_rate'"]),
        ({"early_stopping_patience": 2, "validation_split": 0}, "early_stopping_patience", ["validation_split=0.1"]),
    ],
)
def test_a_wrong_field_is_one_sentence_that_says_what_to_write(change, field, says):
    with pytest.raises(InvalidJob) as caught:
        TrainingJob(**(GOOD | change))
    message = str(caught.value)
    assert caught.value.field == field
    assert message.startswith(f"{field}: ")
    assert "\n" not in message
    for words in says:
        assert words in message


def test_a_missing_field_is_named():
    with pytest.raises(InvalidJob, match="dataset: is missing"):
        TrainingJob(model="cnn")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "name",
    [
        "mock://cifar10",
        "synthetic://images?shape=1x8x8",
        "s3://bucket/train.parquet",
        "https://host/a.csv.gz?token=1",
        "data/train-images-idx3-ubyte.gz",
        "file:///data/x.npz",
        "corpus.txt",
    ],
)
def test_addresses_of_known_form_pass(name):
    assert TrainingJob(model="package.module:factory", dataset=name).dataset == name


def test_suffix_looks_through_gz():
    assert suffix_of("a/B.CSV.gz") == ".csv"
    assert suffix_of("a/b.gz") is None


def test_needs_no_torch():
    code = (
        "import sys; from cyxwiz_tasks.training_job import TrainingJob; TrainingJob(model='cnn', dataset='digits');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'sqlalchemy', 'fsspec')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
