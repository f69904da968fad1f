"""Whether the kernel killed somebody for memory: a job that ended by SIGKILL while this count rose ran out of it."""

import re
from pathlib import Path

from workers.attempt_cgroup import AttemptCgroup
from workers.cgroups import out_of_memory_kills, unified_folder


def oom_kill_count(cgroup: AttemptCgroup | None = None) -> int:
    """Out-of-memory kills so far, from the narrowest counter there is. Compare two readings of the same call.

    That is the attempt's own cgroup, else the agent's (a container's limit), else the whole machine's, which also
    counts kills that had nothing to do with the job. 0 where nobody counts.
    """
    for count in (cgroup.out_of_memory_kills() if cgroup else None, out_of_memory_kills(unified_folder())):
        if count is not None:
            return count
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(found.group(1)) if found else 0
