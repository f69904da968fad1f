"""`python -m tests.worlds --worlds 20000`, or `--seed 17` for one of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.worlds.books import Broken
from tests.worlds.world import SEEN, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.worlds", description=__doc__)
    parser.add_argument("--worlds", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone")
    given = parser.parse_args()
    seeds = [given.seed] if given.seed is not None else range(given.first, given.first + given.worlds)
    began, seen, failed = time.monotonic(), Counter[str](dict.fromkeys(SEEN, 0)), []
    with ProcessPoolExecutor() as pool:
        for seed, (counts, broken) in zip(seeds, pool.map(play, seeds, chunksize=50), strict=True):
            seen.update(counts)
            if broken is not None:
                failed.append(seed)
                print(f"make worlds SEED={seed}: {broken}", file=sys.stderr, flush=True)
    what = ", ".join(f"{count:,} {name}" for name, count in seen.items())
    print(f"{len(seeds):,} worlds in {time.monotonic() - began:.0f} s: {what}; {len(failed)} broken")
    return bool(failed)


def play(seed: int) -> tuple[dict[str, int], str | None]:
    """What was seen in one world, and which invariant was broken."""
    world = World(seed)
    try:
        return world.play(), None
    except Broken as broken:
        return world.counts, f"at {world.now:.0f} s: {broken}"


if __name__ == "__main__":
    sys.exit(main())
