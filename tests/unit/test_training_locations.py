import functools
import gzip
import hashlib
import http.server
import json
import threading

import fsspec
import pytest

from cyxwiz_tasks.errors import DataError, DataRefused
from cyxwiz_tasks.training import http_download, names
from cyxwiz_tasks.training.datasets import load_dataset
from cyxwiz_tasks.training.http_download import PRIVATE_HOSTS_VARIABLE, download, public_address
from cyxwiz_tasks.training.locations import locate
from cyxwiz_tasks.training.mnist import CHECKSUMS, MIRRORS
from cyxwiz_tasks.training_job import TrainingJob
from tests.unit.test_training_datasets import INPUTS, TARGETS, write_csv, write_idx


class Files(http.server.SimpleHTTPRequestHandler):
    seen: list[str] = []
    redirects: dict[str, str] = {}

    def do_GET(self):
        self.seen.append(self.path)
        if self.path in self.redirects:
            self.send_response(302)
            self.send_header("Location", self.redirects[self.path])
            self.end_headers()
        elif self.path == "/short.csv":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"label,a\n")
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_args):
        pass


@pytest.fixture
def site(tmp_path):
    """A web server on 127.0.0.1 that serves `tmp_path/site`."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = type("Handler", (Files,), {"seen": [], "redirects": {}})
    serve = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        handler.folder, handler.url = folder, f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def private_allowed(monkeypatch):
    monkeypatch.setenv(PRIVATE_HOSTS_VARIABLE, "intranet,127.0.0.1")


@pytest.mark.parametrize(
    "uri",
    ["/etc/hosts.csv", "../secret.csv", "file:///etc/x.csv", "inside/../../secret.csv", "file:///%2e%2e/secret.csv"],
)
def test_files_outside_the_data_folders_are_refused(tmp_path, uri):
    (tmp_path / "secret.csv").write_text("label,a\n")
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(DataRefused, match="outside the folders"):
        locate(uri, (root,))


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.csv").write_text("label,a\n")
    (root / "out.csv").symlink_to(tmp_path / "secret.csv")
    (root / "real.csv").write_text("label,a\n")
    (root / "in.csv").symlink_to(root / "real.csv")
    with pytest.raises(DataRefused):
        locate("out.csv", (root,))
    assert locate("in.csv", (root,)).fetch(tmp_path) == root / "real.csv"
    assert locate(f"file://{root}/real.csv", (root,)).fetch(tmp_path) == root / "real.csv"


def test_without_data_folders_nothing_local_is_read(tmp_path):
    with pytest.raises(DataRefused, match="none on this node"):
        locate(str(tmp_path / "a.csv"), ())


@pytest.mark.parametrize(
    "uri",
    [
        "dir::file:///a.csv",
        "zip://a.csv::/b.zip",
        "ftp://h/a.csv",
        "memory://a.csv",
        "ssh://h/a.csv",
        "data/no",
        "digits",
    ],
)
def test_other_schemes_and_chains_are_refused(uri, tmp_path):
    with pytest.raises(DataError, match="field_name: "):
        locate(uri, (tmp_path,), "field_name")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "127.1",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "224.0.0.1",
        "100.64.0.1",
    ],
)
def test_private_addresses_are_refused_in_every_spelling(host):
    with pytest.raises(DataRefused, match=PRIVATE_HOSTS_VARIABLE):
        public_address(host, 80)


def test_public_addresses_pass():
    assert public_address("93.184.215.14", 80) == "93.184.215.14"
    assert public_address("2606:2800:21f:cb07:6820:80da:af6b:8b2c", 443).startswith("2606:")


def test_one_private_answer_among_public_ones_is_refused(monkeypatch):
    answers = [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr(http_download.socket, "getaddrinfo", lambda *_args, **_kwargs: answers)
    with pytest.raises(DataRefused):
        public_address("rebinding.example", 80)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    answers = iter(["93.184.215.14", "127.0.0.1"])
    resolve = http_download.socket.getaddrinfo
    monkeypatch.setattr(
        http_download.socket,
        "getaddrinfo",
        lambda host, *rest, **named: resolve(next(answers) if host == "rebinding.example" else host, *rest, **named),
    )
    reached = []

    def connect(address, *_rest):
        reached.append(address)
        raise OSError("unreachable")

    monkeypatch.setattr(http_download.socket, "create_connection", connect)
    with pytest.raises(DataError, match="unreachable"):
        http_download.version_of("http://rebinding.example/a.csv")
    assert reached == [("93.184.215.14", 80)]


def test_a_private_server_gets_no_connection(site, tmp_path):
    with pytest.raises(DataRefused):
        locate(f"{site.url}/a.csv", (tmp_path,))
    assert site.seen == []


@pytest.mark.usefixtures("private_allowed")
def test_a_file_over_http_is_read_once(site, tmp_path):
    write_csv(site.folder / "a.csv.gz")
    job = TrainingJob(model="mlp", dataset=f"{site.url}/a.csv.gz?version=1", dataset_options={"label": "label"})
    for _ in range(2):
        dataset = load_dataset(job, tmp_path / "cache", ())
        assert len(dataset.train) + len(dataset.validation) == len(TARGETS)
    # Asked for its version each time, downloaded the first time.
    assert len(site.seen) == 3
    assert not list((tmp_path / "cache").glob("download-*"))


@pytest.mark.usefixtures("private_allowed")
def test_redirects_stay_on_their_host(site, tmp_path):
    (site.folder / "a.csv").write_text("label,a\n0,1\n")
    site.redirects |= {"/near.csv": "/a.csv", "/far.csv": "http://intranet/a.csv", "/round.csv": "/round.csv"}
    download(f"{site.url}/near.csv", tmp_path / "got")
    assert (tmp_path / "got").read_text() == "label,a\n0,1\n"
    with pytest.raises(DataRefused, match="only the same host"):
        download(f"{site.url}/far.csv", tmp_path / "got")
    with pytest.raises(DataError, match="redirects more than"):
        download(f"{site.url}/round.csv", tmp_path / "got")


@pytest.mark.usefixtures("private_allowed")
def test_what_does_not_arrive_is_an_error_that_says_so(site, tmp_path):
    with pytest.raises(DataError, match="answers 404"):
        download(f"{site.url}/absent.csv", tmp_path / "got")
    with pytest.raises(DataError, match="broke off after 8 of 1000 bytes"):
        download(f"{site.url}/short.csv", tmp_path / "got")
    with pytest.raises(DataError, match="cannot be read"):
        download("http://127.0.0.1:9/a.csv", tmp_path / "got")
    with pytest.raises(DataError, match="without a password"):
        download("http://me:secret@127.0.0.1/a.csv", tmp_path / "got")


def test_object_stores_go_through_fsspec(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "SCHEMES", (*names.SCHEMES, "memory"))
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/a.csv", b"label,a\n0,1\n1,2\n0,3\n1,4\n")
    job = TrainingJob(model="mlp", dataset="memory://bucket/a.csv", validation_split=0)
    assert load_dataset(job, tmp_path, ()).classes == 2
    with pytest.raises(DataError, match=r"there is no memory://bucket/b\.csv"):
        locate("memory://bucket/b.csv", ())
    with pytest.raises(DataError, match="pip install s3fs"):
        locate("s3://bucket/a.csv", ())


@pytest.fixture
def small_mnist(monkeypatch):
    """The four files of MNIST in small, and their checksums in place of the real ones'."""

    def write(folder, suffix=""):
        for prefix, rows in (("train", 30), ("t10k", 10)):
            write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", INPUTS[:rows])
            write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", TARGETS[:rows].astype("uint8"))
        for name in CHECKSUMS["mnist"]:
            content = (folder / (name + suffix)).read_bytes()
            plain = gzip.decompress(content) if suffix else content
            monkeypatch.setitem(CHECKSUMS["mnist"], name, (hashlib.md5(plain, usedforsecurity=False).hexdigest(),))

    return write


@pytest.mark.usefixtures("private_allowed")
def test_mnist_is_downloaded_once_from_the_first_mirror_that_has_it(site, tmp_path, small_mnist, monkeypatch):
    (site.folder / "good").mkdir()
    (site.folder / "damaged").mkdir()
    small_mnist(site.folder / "good", ".gz")
    for file in (site.folder / "good").iterdir():
        (site.folder / "damaged" / file.name).write_bytes(gzip.compress(b"\0\0\x08\x01" + b"\0" * 9))
    monkeypatch.setitem(MIRRORS, "mnist", (f"{site.url}/absent/", f"{site.url}/damaged/", f"{site.url}/good/"))
    for _ in range(2):
        dataset = load_dataset(TrainingJob(model="cnn", dataset="mnist"), tmp_path / "cache", ())
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (27, 3, 10)
    assert (dataset.classes, dataset.input_shape, dataset.test_is_validation) == (10, (1, 6, 6), False)
    assert len(site.seen) == 4 * 3


@pytest.mark.usefixtures("private_allowed")
def test_mnist_without_a_mirror_says_what_else_to_do(site, tmp_path, monkeypatch):
    monkeypatch.setitem(MIRRORS, "mnist", (f"{site.url}/absent/",))
    with pytest.raises(DataError, match=r"answers 404 .*dataset_options=\{\"folder\""):
        load_dataset(TrainingJob(model="cnn", dataset="mnist"), tmp_path / "cache", ())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_out_of_a_folder(tmp_path, small_mnist, suffix):
    (tmp_path / "mine").mkdir()
    small_mnist(tmp_path / "mine", suffix)
    job = TrainingJob(model="cnn", dataset="fashion-mnist", dataset_options={"folder": "mine"})
    dataset = load_dataset(job, tmp_path / "cache", (tmp_path,))
    assert len(dataset.test) == 10
    outside = job.model_copy(update={"dataset_options": {"folder": str(tmp_path)}})
    with pytest.raises(DataRefused):
        load_dataset(outside, tmp_path / "cache", (tmp_path / "mine",))


def test_cache_entries_describe_themselves(tmp_path):
    load_dataset(TrainingJob(model="cnn", dataset="digits"), tmp_path, ())
    [meta] = (tmp_path / "datasets").glob("*/meta.json")
    assert json.loads(meta.read_text())["classes"] == 10


@pytest.mark.usefixtures("private_allowed")
@pytest.mark.parametrize("name", ["données brutes.csv", "donn%C3%A9es%20brutes.csv"])
def test_an_address_may_have_letters_and_blanks(site, tmp_path, name):
    write_csv(site.folder / "données brutes.csv")
    download(f"{site.url}/{name}", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (site.folder / "données brutes.csv").read_bytes()
