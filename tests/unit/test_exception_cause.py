"""Whose fault an exception is."""

from __future__ import annotations

import errno
import socket
import subprocess
import traceback
import urllib.error
from contextlib import suppress
from email.message import Message

import pytest
import torch
from safetensors import SafetensorError
from torch._utils import ExceptionWrapper
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from cyxwiz_tasks.runtime.entry import has_gpu
from cyxwiz_tasks.runtime.exception_cause import cause_of, memory_of, tells_of_a_kill


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def http(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://there", code, "words", Message(), None)


class ConnectTimeout(OSError):
    __module__ = "requests.exceptions"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError("asked for 4 TB"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out_of_memory"),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "out_of_memory"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolver`"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "error"),
        (raised_from(ValueError("in epoch 3"), MemoryError()), "out_of_memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "hardware"),
        (RuntimeError("NVML: GPU is lost"), "hardware"),
        (RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."), "hardware"),
        (OSError(errno.EIO, "Input/output error"), "hardware"),
        (OSError(errno.ENOSPC, "No space left on device"), "hardware"),
        (OSError(errno.EROFS, "Read-only file system"), "hardware"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "hardware"),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "hardware"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (RuntimeError("unable to mmap 64 bytes from file <w.pt>: Cannot allocate memory (12)"), "out_of_memory"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "hardware"),
        (SafetensorError("Error while deserializing: No such file or directory (os error 2)"), "error"),
        (torch.distributed.DistNetworkError("Failed to recv, got 0 bytes"), "network"),
        (torch.distributed.DistBackendError("NCCL error: unhandled system error"), "network"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "network"),
        (socket.gaierror(-2, "Name or service not known"), "network"),
        (urllib.error.URLError("no route"), "network"),
        (http(503), "network"),
        (ConnectTimeout("timed out"), "network"),
        (http(404), "error"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "error"),
        (ValueError("uncorrectable ECC error"), "error"),
        (RuntimeError("CUDA error: device-side assert triggered"), "error"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "error"),
        (TimeoutError("a lock of the job's own"), "error"),
        (subprocess.CalledProcessError(1, "false"), "error"),
    ],
    ids=lambda value: repr(value)[:50] if isinstance(value, BaseException) else value,
)
def test_causes(error, cause):
    assert cause_of(error) == cause


def test_a_model_that_finds_no_room_is_no_fault_of_the_job():
    # What is still in its buffer fails once more when it is closed.
    with suppress(OSError), open("/dev/full", "wb") as full, pytest.raises(RuntimeError) as caught:
        torch.save({"weights": torch.zeros(100_000)}, full)
    assert cause_of(caught.value) == "hardware"


def raises(error: BaseException, cause: BaseException | None) -> None:
    if cause is None:
        raise error
    try:
        raise cause
    except BaseException as caught:
        raise error from caught


def in_a_data_loaders_worker(error: BaseException, cause: BaseException | None) -> BaseException:
    """What torch makes of an exception there, by its own code."""
    try:
        raises(error, cause)
    except BaseException:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    try:
        wrapped.reraise()
    except BaseException as reraised:
        return reraised
    raise AssertionError


def in_a_spawned_process(error: BaseException, cause: BaseException | None) -> BaseException:
    """As `torch.multiprocessing.spawn` says it."""
    try:
        raises(error, cause)
    except BaseException:
        text = f"\n\n-- Process 3 terminated with the following error:\n{traceback.format_exc()}"
    return ProcessRaisedException(text, 3, 4711)


@pytest.mark.parametrize("relayed", [in_a_data_loaders_worker, in_a_spawned_process])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/shard"), "hardware"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "hardware"),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "network"),
        (ConnectTimeout("timed out"), "network"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "error"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error"),
        (ValueError("MemoryError: of no process"), "error"),
    ],
    ids=lambda value: repr(value)[:50] if isinstance(value, BaseException) else None,
)
def test_what_another_process_of_the_job_raised_is_judged_as_if_the_job_had(relayed, error, cause):
    assert cause_of(relayed(error, None)) == cause
    assert cause_of(relayed(KeyError("in epoch 3"), error)) == cause
    assert cause_of(in_a_spawned_process(relayed(error, None), None)) == cause


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), "ram"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), "ram"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ram"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "gpu_memory"),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), "gpu_memory"),
        (type("OutOfMemoryError", (MemoryError,), {"__module__": "cupy.cuda.memory"})(), "gpu_memory"),
        (ValueError("none"), None),
    ],
)
def test_which_memory_ran_out(error, memory):
    assert memory_of(error) == memory
    assert memory_of(in_a_spawned_process(KeyError("a"), error)) == memory


def test_that_a_process_of_the_job_was_killed():
    worker = RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")
    assert tells_of_a_kill(raised_from(RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), worker))
    assert tells_of_a_kill(ProcessExitedException("process 0 terminated with signal SIGKILL", 0, 4711, -9, "SIGKILL"))
    assert tells_of_a_kill(subprocess.CalledProcessError(-9, "decode"))
    assert not tells_of_a_kill(RuntimeError("DataLoader worker (pid 4711) is killed by signal: Segmentation fault. "))
    assert not tells_of_a_kill(subprocess.CalledProcessError(-11, "decode"))


def test_a_ring_of_causes_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert cause_of(first) == "error"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"),
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("CUDA error: no CUDA-capable device is detected"),
    ],
)
def test_a_gpu_that_is_missing_is_the_fault_of_the_node_that_promised_one(error):
    assert (
        cause_of(error, has_gpu=True)
        == cause_of(raised_from(ValueError("at first"), error), has_gpu=True)
        == "hardware"
    )
    assert cause_of(error) == "error"


def test_a_job_that_chooses_among_gpus_by_itself_has_none_of_its_nodes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    assert has_gpu({"gpus": ["GPU-1", "GPU-2"]})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert not has_gpu({"gpus": ["GPU-1", "GPU-2"]})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_gpu({"gpus": []})
