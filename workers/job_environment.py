"""What a job's process finds in its environment: what is listed here and harmless, nothing else of the agent's.

A list of what passes, because a list of what is secret is never complete. What passes is checked once more: a name that
sounds like a credential, or an address with a password in it, stays out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "HOSTNAME"),
        *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "MALLOC_ARENA_MAX"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
        *("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "MPLCONFIGDIR", "GLOO_SOCKET_IFNAME"),
    }
)
_PREFIXES = (
    *("LC_", "PYTHON", "CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "CUDNN_", "TORCH", "PYTORCH_", "TRITON_"),
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_"),
)
_SOUNDS_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH|DSN", re.IGNORECASE)
_ADDRESS_WITH_PASSWORD = re.compile(r"://[^/\s]*@")


def job_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment of a node's jobs, out of the agent's; `threads` is each job's share of the cores."""
    passed = {name: value for name, value in environment.items() if _passes(name, value)}
    number = str(threads)
    return passed | {
        # Idle threads of one job would otherwise spin on the cores of another: 765 ms a step instead of 44.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        "OPENBLAS_NUM_THREADS": number,
    }


def _passes(name: str, value: str) -> bool:
    if name not in _NAMES and not name.startswith(_PREFIXES):
        return False
    return not _SOUNDS_SECRET.search(name) and not _ADDRESS_WITH_PASSWORD.search(value)
