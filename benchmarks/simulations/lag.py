"""How busy slots are while suggestions wait for earlier trials, simulated: `python -m benchmarks.simulations.lag`.

A pruned trial takes a twelfth, a quarter, a third or two thirds of a whole one's time. A table: share of pruned trials, and the
busy share of the slots where a suggestion knows all trials but the last 1, 2 or 3 times the number of slots.
"""

from __future__ import annotations

import heapq
import random
from statistics import mean

TRIALS, SEEDS = 100, 50
PRUNED_AT = (1 / 12, 1 / 4, 1 / 3, 2 / 3)


def busy_share(slots: int, lag: int, seconds: list[float]) -> float:
    """Of `slots` that take trials of these `seconds` in order, the one at `index` once all up to `index - lag` have ended."""
    free, ends = [0.0] * slots, list[float]()
    for index, length in enumerate(seconds):
        known = max(0, index - lag + 1)
        start = max(heapq.heappop(free), *ends[:known], 0.0)
        ends.append(start + length)
        heapq.heappush(free, ends[-1])
    return sum(seconds) / (slots * max(ends))


def main() -> None:
    print("slots  pruned   lag 1x   lag 2x   lag 3x")
    for slots in (2, 8):
        for pruned in (0.0, 0.5, 0.8):
            shares: dict[int, list[float]] = {factor: [] for factor in (1, 2, 3)}
            for seed in range(SEEDS):
                draw = random.Random(seed)
                seconds = [
                    draw.choice(PRUNED_AT) if draw.random() < pruned else draw.uniform(0.95, 1.05) for _ in range(TRIALS)
                ]
                for factor, found in shares.items():
                    found.append(busy_share(slots, factor * slots, seconds))
            print(f"{slots:5}  {pruned:6.0%}" + "".join(f"{mean(found):9.2f}" for found in shares.values()))


if __name__ == "__main__":
    main()
