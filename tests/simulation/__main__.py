"""`python -m tests.simulation --seeds 200`, or `--seed 17` for one of them with its trace."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.cluster import SimCluster
from tests.simulation.world import Broken

#: every fourth cluster has gangs, and as many of its jobs are some
_EVERY, _GANGS = 4, 0.3


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with its trace")
    given = parser.parse_args()
    if "PYTHONHASHSEED" not in os.environ:
        # The order of sets of texts is part of what happens.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    logging.disable(logging.CRITICAL)
    if given.seed is not None:
        return run(given.seed, print)
    began = time.monotonic()
    seeds = range(given.first, given.first + given.seeds)
    with ProcessPoolExecutor(initializer=logging.disable, initargs=(logging.CRITICAL,)) as pool:
        failed = [seed for seed, result in zip(seeds, pool.map(run, seeds, chunksize=5), strict=True) if result]
    print(f"{len(seeds)} seeds in {time.monotonic() - began:.1f} s, {len(failed)} failed: {failed}")
    return bool(failed)


def run(seed: int, trace: Callable[[str], None] | None = None) -> int:
    """0 if everything holds."""
    try:
        SimCluster(seed, trace, gangs=_GANGS if seed % _EVERY == 0 else 0.0).run()
    except Broken as broken:
        print(f"seed {seed}: make simulate SEED={seed}\n{broken}\n", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
