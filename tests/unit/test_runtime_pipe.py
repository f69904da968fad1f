"""Frames between the agent and a job's process."""

from __future__ import annotations

import datetime
import json
import os
import resource
import socket
import struct
import threading
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cyxwiz_tasks.runtime.pipe import Pipe, decode_value, encode_value
from workers.job_environment import job_environment
from workers.warm_process import ForkFailed, ForkServer


@pytest.fixture
def ends() -> Iterator[tuple[Pipe, socket.socket]]:
    """One end as a Pipe, the other as a bare socket."""
    ours, theirs = socket.socketpair()
    pipe = Pipe(ours.detach())
    yield pipe, theirs
    pipe.close()
    theirs.close()


def frame(text: bytes) -> bytes:
    return struct.pack("!I", len(text)) + text


def test_a_frame_arrives_as_it_was_sent(ends):
    pipe, theirs = ends
    other = Pipe(theirs.detach())
    pipe.send({"kind": "run", "text": "hällo \udc80"})
    assert other.receive() == {"kind": "run", "text": "hällo ?"}
    other.close()
    with pytest.raises(EOFError):
        pipe.receive()


def test_half_a_frame_is_not_waited_for(ends):
    pipe, theirs = ends
    whole = frame(b'{"kind":"progress"}')
    theirs.sendall(whole + whole[:9])
    assert pipe.receive_all() == [{"kind": "progress"}]
    assert pipe.receive_all() == []
    theirs.sendall(whole[9:])
    assert pipe.receive_all() == [{"kind": "progress"}]
    theirs.close()
    with pytest.raises(EOFError):
        pipe.receive_all()


@pytest.fixture
def default_timeout() -> Iterator[None]:
    """As kombu sets it, for a moment, for all threads of an agent that has lost its connection."""
    socket.setdefaulttimeout(0.01)
    yield
    socket.setdefaulttimeout(None)


def test_both_ends_wait_whatever_the_default_of_sockets_was_when_they_were_made(default_timeout):
    ours, theirs = (Pipe(end.detach()) for end in socket.socketpair())
    later = threading.Timer(0.1, ours.send, [{"kind": "run"}])
    later.start()
    assert theirs.receive() == {"kind": "run"}
    later.join()
    assert os.get_blocking(ours.fileno())
    assert os.get_blocking(theirs.fileno())
    ours.close()
    theirs.close()


def test_a_process_that_is_forked_in_that_moment_waits_for_its_job(default_timeout):
    server = ForkServer(job_environment(os.environ, 1), mark="test")
    process = server.fork()
    assert not process.pipe.wait(0.3)
    assert not process.has_ended()
    process.end_tree()
    process.close()
    server.stop()


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 5])
def test_an_agent_without_free_descriptors_fails_to_fork_and_forgets_none_of_them(free):
    """The thread that keeps processes warm tries again after a ForkFailed, and ends with anything else."""
    server, soft = ForkServer({}, mark="test"), resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    filling = [os.open(os.devnull, os.O_RDONLY)]
    while filling[-1] <= highest:
        filling.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filling[-1] + 1 + free, soft[1]))
    try:
        with pytest.raises(ForkFailed):
            server.fork()
        again = os.open(os.devnull, os.O_RDONLY) if free else None
        assert again in (None, filling[-1] + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)
    for fd in [*filling, *([again] if again is not None else [])]:
        os.close(fd)


def test_noise_on_the_pipe_is_an_error_and_not_a_gigabyte(ends):
    pipe, theirs = ends
    theirs.sendall(b"hello, I am not a frame")
    with pytest.raises(OSError, match="something else writes to it"):
        pipe.receive_all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20)), max_size=5), st.data())
def test_however_the_bytes_are_cut_the_frames_are_the_same(frames, data):
    ours, theirs = socket.socketpair()
    pipe = Pipe(ours.detach())
    raw = b"".join(frame(json.dumps(one).encode()) for one in frames)
    received = []
    try:
        while raw:
            size = data.draw(st.integers(1, len(raw)))
            theirs.sendall(raw[:size])
            raw = raw[size:]
            received += pipe.receive_all()
    finally:
        pipe.close()
        theirs.close()
    assert received == frames


def test_values_travel_as_celery_would_carry_them():
    value = {"at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "id": uuid.UUID(int=5), "rows": (1, 2.5, None)}
    assert decode_value(encode_value(value)) == value | {"rows": [1, 2.5, None]}
    with pytest.raises(TypeError):
        encode_value(object())
