"""Whose fault an exception is, as far as its class and its words say: memory, the hardware, or a connection.

By names, because most of these classes belong to libraries that a job may or may not have imported.
"""

from __future__ import annotations

import errno
import re
import socket
import urllib.error
from collections.abc import Iterator

from cyxwiz_tasks.runtime.relayed_exception import relayed
from cyxwiz_tasks.states import Cause, Memory

#: as many links of a chain of exceptions as a person would read
_LONGEST_CHAIN = 10

#: cupy's is a MemoryError
_GPU_MEMORY_CLASSES = frozenset({"torch.OutOfMemoryError", "cupy.OutOfMemoryError"})
# CUDA's libraries raise a plain RuntimeError, each in its own words: cuBLAS and cuSOLVER *_STATUS_ALLOC_FAILED, cuFFT
# CUFFT_ALLOC_FAILED, and cuDNN since 9 CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
_GPU_MEMORY_WORDS = re.compile(r"CUDA out of memory|\bCU[A-Z]+_(\w+_)?ALLOC(ATION)?_FAILED|cuda.*out of memory", re.I)
#: torch's, on the CPU: "DefaultCPUAllocator: can't allocate memory", "unable to mmap ...: Cannot allocate memory (12)"
_MEMORY_WORDS = re.compile(r"can(no|')t allocate memory", re.I)

#: How it is told that SIGKILL ended a process of the job's own: by torch's DataLoader, torch.multiprocessing,
#: subprocess, torchrun, joblib; and in `concurrent.futures` that some end did.
_KILLED_WORDS = re.compile(
    r"DataLoader worker .* (is killed by signal: Killed|exited unexpectedly)|terminated with signal SIGKILL"
    r"|died with <Signals\.SIGKILL|Signal 9 \(SIGKILL\)|SIGKILL\(-9\)|process pool was terminated abruptly"
)

#: Of CUDA's errors those that no program can cause: cudaErrorECCUncorrectable, NVLink, a GPU that left the bus.
_HARDWARE_WORDS = re.compile(
    r"uncorrectable (ECC|NVLink)|ECC error|GPU is lost|fallen off the bus|\bXid\b|hardware stack error",
    re.I,
)

#: torch's, when CUDA is first touched. A job that was given a GPU can do nothing about the node's driver or torch.
_NO_GPU_WORDS = re.compile(
    r"No CUDA GPUs are available|Found no NVIDIA driver|driver on your system is too old"
    r"|Unexpected error from cudaGetDeviceCount|not compiled with CUDA enabled"
    r"|no CUDA-capable device is detected|CUDA-capable device\(s\) is/are busy or unavailable",
    re.I,
)

#: Of the node's disks: broken, full, over a quota, or read-only since it broke. Another node may do better.
_DISK_ERRORS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_DISK_CLASSES = frozenset({"cyxwiz_tasks.FolderUnusable"})
#: how libraries that are written in Rust say the kernel's error, safetensors for one
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_NETWORK_CLASSES = (ConnectionError, socket.gaierror, urllib.error.URLError)
_NETWORK_NAMES = frozenset(
    {
        *("torch.DistNetworkError", "torch.DistBackendError", "torch.DistStoreError"),
        *(
            "requests.ConnectionError",
            "requests.ConnectTimeout",
            "requests.ReadTimeout",
            "requests.ChunkedEncodingError",
        ),
        *("urllib3.HTTPError", "httpx.TransportError", "aiohttp.ClientConnectionError", "fsspec.FSTimeoutError"),
        *("botocore.EndpointConnectionError", "botocore.ConnectionError", "botocore.HTTPClientError"),
    }
)


def cause_of(error: BaseException, *, has_gpu: bool = False) -> Cause:
    """The cause of an attempt that ended with this exception: what nobody's code can help, else `error`.

    `has_gpu`: whether it was given one. A job without that finds none has asked for too little.
    """
    chain = list(_chain(error))
    for asks, cause in (
        (_memory, Cause.OUT_OF_MEMORY),
        (_is_hardware, Cause.HARDWARE),
        (_is_network, Cause.NETWORK),
    ):
        if any(asks(one) for one in chain):
            return cause
    return Cause.HARDWARE if has_gpu and any(_misses_gpu(one) for one in chain) else Cause.ERROR


def memory_of(error: BaseException) -> Memory | None:
    """Of an exception whose cause is `out_of_memory`: which one."""
    return next(filter(None, map(_memory, _chain(error))), None)


def tells_of_a_kill(error: BaseException) -> bool:
    """Whether it says that a process of the job's own was killed; whether for its memory, only the node can know."""
    return any(_KILLED_WORDS.search(str(one)) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from, in other processes of the job too."""
    one: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if one is None:
            return
        yield one
        one = one.__cause__ if one.__cause__ is not None else relayed(one)


def _memory(error: BaseException) -> Memory | None:
    words = str(error) if isinstance(error, RuntimeError) else ""
    if _GPU_MEMORY_CLASSES & _names(error) or _GPU_MEMORY_WORDS.search(words):
        return "gpu_memory"
    is_host = isinstance(error, MemoryError) or _errno(error) == errno.ENOMEM or _MEMORY_WORDS.search(words)
    return "ram" if is_host else None


def _is_hardware(error: BaseException) -> bool:
    if _errno(error) in _DISK_ERRORS:
        return True
    names = _names(error)
    if _DISK_CLASSES & names:
        return True
    speaks_of_gpus = isinstance(error, RuntimeError) or any(name.startswith(("torch.", "pynvml.")) for name in names)
    return speaks_of_gpus and bool(_HARDWARE_WORDS.search(str(error)))


def _misses_gpu(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | AssertionError) and bool(_NO_GPU_WORDS.search(str(error)))


def _errno(error: BaseException) -> int | None:
    """The kernel's error, also inside what libraries make of it: torch raises a RuntimeError in its context."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found is not None else None


def _is_network(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500  # an answer: the connection is well, and 404 will be 404 again
    if isinstance(error, BrokenPipeError) and not isinstance(error.__cause__, ConnectionError):
        return False  # mostly a child process of the job's own
    return isinstance(error, _NETWORK_CLASSES) or bool(_NETWORK_NAMES & _names(error))


def _names(error: BaseException) -> set[str]:
    """Its classes as "torch.OutOfMemoryError": libraries move their classes between modules, and re-export them."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
