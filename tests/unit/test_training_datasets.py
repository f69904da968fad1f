import gzip
import struct

import h5py
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from cyxwiz_tasks.errors import DataError, DataRefused, InvalidJob
from cyxwiz_tasks.runtime.context import LocalContext
from cyxwiz_tasks.training.datasets import epoch_order, load_dataset, split_rows
from cyxwiz_tasks.training.loop import train
from cyxwiz_tasks.training.mnist import CHECKSUMS
from cyxwiz_tasks.training.rows import Moments
from cyxwiz_tasks.training_job import TrainingJob

RANDOM = np.random.default_rng(3)
INPUTS = RANDOM.integers(0, 255, (40, 6, 6), dtype=np.uint8)
TARGETS = RANDOM.integers(0, 3, 40)
FLAT = INPUTS.reshape(40, 36)


def write_idx(path, array):
    codes = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}
    header = bytes([0, 0, codes[array.dtype], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_csv(path, names=True, targets=TARGETS, inputs=FLAT):
    head = ",".join(["label", *(f"p{i}" for i in range(36))]) + "\n"
    rows = "".join(f"{target},{','.join(map(str, row))}\n" for target, row in zip(targets, inputs, strict=True))
    text = (head if names else "") + rows
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def load(tmp_path):
    def load(uri, split=0.25, **options):
        job = TrainingJob(model="mlp", dataset=uri, dataset_options=options, validation_split=split)
        return load_dataset(job, tmp_path / "cache", (tmp_path,))

    return load


def write_files(folder):
    write_csv(folder / "a.csv")
    write_csv(folder / "b.csv.gz")
    write_csv(folder / "bare.csv", names=False)
    table = pyarrow.table({"label": TARGETS, **{f"p{i}": FLAT[:, i] for i in range(36)}})
    parquet.write_table(table, folder / "a.parquet")
    np.save(folder / "a.npy", INPUTS)
    np.save(folder / "labels.npy", TARGETS)
    np.savez(folder / "a.npz", x_train=INPUTS, y_train=TARGETS[:, None])
    with h5py.File(folder / "a.h5", "w") as file:
        file["images"], file["labels"] = INPUTS, TARGETS
        file.create_group("notes")
    save_file({"x": INPUTS, "y": TARGETS}, folder / "a.safetensors")
    write_idx(folder / "images-idx3-ubyte", INPUTS)
    write_idx(folder / "labels.idx.gz", TARGETS.astype(np.int32))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {"shape": "1x6x6"}),
        ("b.csv.gz", {"shape": [6, 6], "label": "label"}),
        ("bare.csv", {"shape": "6x6", "header": False, "label": "f0"}),
        ("a.parquet", {"shape": "6x6"}),
        ("a.npy", {"targets": "labels.npy"}),
        ("a.npz", {}),
        ("a.h5", {"inputs": "images", "targets": "labels"}),
        ("a.safetensors", {}),
        ("images-idx3-ubyte", {"targets": "labels.idx.gz"}),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, load, name, options):
    write_files(tmp_path)
    dataset = load(str(tmp_path / name), **options)
    assert dataset.input_shape == (1, 6, 6)
    assert dataset.classes == 3
    np.testing.assert_array_equal(dataset.train.inputs[:, 0], INPUTS)
    np.testing.assert_array_equal(dataset.train.targets, TARGETS)
    assert dataset.mean[0] == pytest.approx(INPUTS.mean(), rel=1e-6)
    assert dataset.std[0] == pytest.approx(INPUTS.std(), rel=1e-6)
    assert (len(dataset.train), len(dataset.validation)) == (30, 10)
    assert dataset.test is dataset.validation


def test_the_copy_is_made_once_and_the_content_decides(tmp_path, load):
    write_csv(tmp_path / "a.csv")
    load("a.csv")
    (tmp_path / "a.csv").rename(tmp_path / "same.csv")
    load("same.csv")
    assert len([entry for entry in (tmp_path / "cache/datasets").iterdir() if entry.is_dir()]) == 1
    write_csv(tmp_path / "same.csv", targets=TARGETS + 1)
    assert load("same.csv").classes == 4
    assert len([entry for entry in (tmp_path / "cache/datasets").iterdir() if entry.is_dir()]) == 2


def test_training_never_writes_into_the_shared_copy(tmp_path, load):
    np.savez(tmp_path / "a.npz", x=INPUTS, y=TARGETS)
    load("a.npz").train.inputs[:] = 0
    np.testing.assert_array_equal(load("a.npz").train.inputs[:, 0], INPUTS)


def test_text_labels_are_numbered_alike_in_train_and_test(tmp_path, load):
    names = np.array(["cat", "dog", "eel"])
    write_csv(tmp_path / "train.csv", targets=names[TARGETS])
    write_csv(tmp_path / "test.csv", targets=names[TARGETS][::-1])
    dataset = load("train.csv", test="test.csv")
    assert dataset.labels == ["cat", "dog", "eel"]
    np.testing.assert_array_equal(dataset.train.targets, TARGETS)
    np.testing.assert_array_equal(dataset.test.targets, TARGETS[::-1])
    assert not dataset.test_is_validation


def test_npz_and_hdf5_bring_their_own_test_part(tmp_path, load):
    np.savez(tmp_path / "a.npz", x_train=INPUTS, y_train=TARGETS, x_test=INPUTS[:5], y_test=TARGETS[:5])
    dataset = load("a.npz")
    assert len(dataset.test) == 5
    assert not dataset.test_is_validation


def test_channels_last_pictures_are_turned(tmp_path, load):
    pictures = RANDOM.integers(0, 255, (20, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=pictures, y=TARGETS[:20])
    assert load("a.npz").input_shape == (3, 5, 5)
    assert load("a.npz", layout="NCHW").input_shape == (5, 5, 3)


def test_text_is_held_out_from_its_end(tmp_path, load):
    (tmp_path / "a.txt").write_text("0123456789" * 100)
    dataset = load("a.txt", context=10)
    assert dataset.classes == 256
    assert dataset.input_shape == (10,)
    np.testing.assert_array_equal(dataset.train.inputs[0, 1:], dataset.train.targets[0, :-1])
    assert dataset.train.rows.max() < dataset.validation.rows.min()


def test_a_table_trains(tmp_path):
    write_csv(tmp_path / "a.csv")
    ctx = LocalContext(artifacts=tmp_path, cache=tmp_path / "cache", data_roots=(tmp_path,))
    result = train(TrainingJob(model="mlp", dataset="a.csv", epochs=40, learning_rate=1e-2), ctx)
    assert result["metrics"]["accuracy"] > 0.9


BAD_ROWS = {
    "hole.csv": "label,a\n0,1\n1,\n",
    "words.csv": "label,a\n0,red\n1,blue\n",
    "half.csv": "label,a\n0.5,1\n1,2\n",
    "below.csv": "label,a\n-1,1\n1,2\n",
    "same.csv": "label,a\n0,1\n0,2\n",
    "ids.csv": "label,a\n5000000,1\n1,2\n",
    "nan.csv": "label,a\n0,inf\n1,2\n",
    "other.csv": "kind,a\n0,1\n1,2\n",
    "empty.csv": "label,a\n",
    "good.csv": "label,a\n0,1\n4,2\n",
    "broken.parquet": "no parquet",
    "broken.npz": "no zip",
    "broken.idx": "no idx",
    "empty.txt": "",
}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("hole.csv", {}, "column 'a' has empty cells"),
        ("words.csv", {}, "column 'a' holds string, not numbers"),
        ("half.csv", {}, "label 0.5 is no class"),
        ("below.csv", {}, "-1 occurs; number the classes from 0"),
        ("same.csv", {}, "same label"),
        ("ids.csv", {}, "looks like no class number"),
        ("nan.csv", {}, "NaN or infinite"),
        ("other.csv", {}, "dataset_options.label: say which column holds the label; there are kind, a"),
        ("other.csv", {"label": "knd"}, "no column 'knd' (did you mean 'kind'?); there are kind, a"),
        ("other.csv", {"label": "kind", "columns": ["b"]}, "dataset_options.columns: there is no column 'b'"),
        ("good.csv", {"classes": 3}, "class labels out of range: 4 occurs, but 3 classes are numbered 0 to 2"),
        ("good.csv", {"shape": "1x28x28"}, "1x28x28 needs 784 values a row, the data has 1"),
        ("good.csv", {"shape": "wide"}, "write for example 3x32x32"),
        ("good.csv", {"lable": "a"}, "dataset_options.lable: this dataset has no such option (did you mean 'label'?)"),
        ("good.csv", {"test": "broken.npz"}, "dataset_options.test: it must be a .csv file"),
        ("empty.csv", {}, "no rows"),
        ("empty.txt", {}, "no rows"),
        ("broken.parquet", {}, "cannot be read as .parquet"),
        ("broken.npz", {}, "cannot be read as .npz"),
        ("broken.idx", {"targets": "broken.idx"}, "is no IDX file"),
        ("absent.csv", {}, "there is no file"),
        ("synthetic://images?size=3", {}, "unknown setting 'size'"),
        ("synthetic://images?samples=-3", {}, "samples=-3 must be a whole number"),
    ],
)
def test_bad_data_says_what_to_do(tmp_path, load, name, options, says):
    for file, text in BAD_ROWS.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(DataError) as caught:
        load(name, **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "datasets").glob("partial-*"))


def test_wrong_keys_list_the_right_ones(tmp_path, load):
    np.savez(tmp_path / "a.npz", picture=INPUTS, kind=TARGETS, short=TARGETS[:3])
    with pytest.raises(DataError, match=r"dataset_options\.inputs: .*it holds picture, kind, short"):
        load("a.npz")
    with pytest.raises(DataError, match=r"no array 'pictures' .did you mean 'picture'"):
        load("a.npz", inputs="pictures", targets="kind")
    with pytest.raises(DataError, match="40 inputs but 3 targets"):
        load("a.npz", inputs="picture", targets="short")


def test_pickled_arrays_are_refused(tmp_path, load):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}] * 40, dtype=object), y=TARGETS)
    with pytest.raises(DataError, match="allow_pickle"):
        load("a.npz")


def test_hdf5_that_points_into_another_file_is_refused(tmp_path, load):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = h5py.ExternalLink("/etc/other.h5", "/x")
        file["y"] = TARGETS
    with pytest.raises(DataRefused, match="lies in another file"):
        load("a.h5")


def test_model_and_data_of_other_kinds(tmp_path):
    (tmp_path / "a.txt").write_text("abc" * 100)
    ctx = LocalContext(artifacts=tmp_path, cache=tmp_path / "cache", data_roots=(tmp_path,))
    with pytest.raises(InvalidJob, match='model="transformer"'):
        train(TrainingJob(model="mlp", dataset="a.txt"), ctx)
    with pytest.raises(InvalidJob, match="'transformer' needs text"):
        train(TrainingJob(model="transformer", dataset="digits"), ctx)


def test_split_and_order_are_pure_functions():
    kept, held_out = split_rows(100, 0.1, 5, in_order=False)
    assert sorted([*kept, *held_out]) == list(range(100))
    assert len(held_out) == 10
    np.testing.assert_array_equal(split_rows(100, 0.1, 5, in_order=False)[1], held_out)
    assert not np.array_equal(split_rows(100, 0.1, 6, in_order=False)[1], held_out)
    first = epoch_order(kept, 5, 0)
    assert sorted(first) == sorted(kept)
    np.testing.assert_array_equal(epoch_order(kept, 5, 0), first)
    assert not np.array_equal(epoch_order(kept, 5, 1), first)


def test_moments_in_pieces_are_those_of_the_whole():
    rows = RANDOM.normal(5, 3, (50, 2, 4, 4)).astype(np.float32)
    moments = Moments()
    for piece in np.split(rows, [7, 30]):
        moments.add(piece)
    mean, deviation = moments.result()
    np.testing.assert_allclose(mean, rows.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(deviation, rows.std((0, 2, 3)), rtol=1e-5)


def test_packed_inputs_and_labels_of_one_name_in_two_folders(load, tmp_path):
    for folder, array in (("inputs", FLAT), ("labels", TARGETS)):
        (tmp_path / folder).mkdir()
        with gzip.open(tmp_path / folder / "train.npy.gz", "wb") as handle:
            np.save(handle, array)
    dataset = load("inputs/train.npy.gz", targets="labels/train.npy.gz")
    assert np.array_equal(dataset.train.inputs, FLAT)


def test_one_content_under_two_suffixes_is_read_as_each_says(load, tmp_path):
    write_csv(tmp_path / "rows.txt")
    write_csv(tmp_path / "rows.csv")
    assert load("rows.txt").is_text
    assert not load("rows.csv").is_text


def damaged(packed):
    """A packed file, of which some bytes in the middle have changed."""
    middle = len(packed) // 2
    return packed[:middle] + bytes(40) + packed[middle + 40 :]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv.gz", damaged(gzip.compress(RANDOM.bytes(5000), mtime=0)), {}),
        ("a.csv.gz", damaged(gzip.compress(b"label,a\n" + b"".join(b"%d,2\n" % i for i in range(9999)), mtime=0)), {}),
        ("a.safetensors", b"\xff" * 100, {}),
        ("a.idx", bytes([0, 0, 8, 3, 0, 0]), {"targets": "y.npy"}),
    ],
)
def test_a_damaged_file_is_named(load, tmp_path, name, content, options):
    np.save(tmp_path / "y.npy", TARGETS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^dataset: {name} cannot be read as"):
        load(name, **options)


def test_a_single_number_is_no_data_set(load, tmp_path):
    np.save(tmp_path / "y.npy", TARGETS)
    np.save(tmp_path / "x.npy", np.float32(3))
    with pytest.raises(DataError, match=r"^dataset: x\.npy cannot be read as \.npy"):
        load("x.npy", targets="y.npy")


def test_a_damaged_folder_of_mnist_is_named(load, tmp_path):
    for file in CHECKSUMS["mnist"]:
        (tmp_path / file).write_bytes(bytes([0, 0, 8, 3, 0, 0]))
    with pytest.raises(DataError, match=r"^dataset_options\.folder: \. cannot be read"):
        load("mnist", folder=".")


@pytest.mark.parametrize("classes", ["3", 3.5, 0, True])
def test_a_number_of_classes_is_a_whole_number(load, tmp_path, classes):
    np.savez(tmp_path / "a.npz", x=FLAT, y=TARGETS)
    with pytest.raises(DataError, match=r"^dataset_options\.classes: must be a whole number of 2 or more"):
        load("a.npz", classes=classes)


@pytest.mark.parametrize("vocabulary", ["many", None, [3]])
def test_a_vocabulary_is_a_whole_number(load, tmp_path, vocabulary):
    (tmp_path / "a.txt").write_text("to be or not to be " * 40)
    with pytest.raises(DataError, match=r"^dataset_options\.vocabulary: must be a whole number, not"):
        load("a.txt", vocabulary=vocabulary)


def test_words_that_come_as_bytes_are_words(load, tmp_path):
    words = ["dög", "cat", "emu"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"] = FLAT, [words[target] for target in TARGETS]
    np.savez(tmp_path / "a.npz", x=FLAT, y=np.array([words[target].encode() for target in TARGETS]))
    assert load("a.h5").labels == load("a.npz").labels == sorted(words)
