"""The reports as PNG files."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from tests.fleet.measures import Report

mpl.use("Agg")

from matplotlib import pyplot as plt


def draw(reports: dict[str, Report], folder: Path) -> list[Path]:
    """Two pictures: shares of GPU time and fairness; waits by class. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    shares = {title: [getattr(r, title) for r in reports.values()] for title in ("utilisation", "goodput", "fairness")}
    waits = {name: [r.waits[name][1] / 60 for r in reports.values()] for name in next(iter(reports.values())).waits}
    return [
        _bars(list(reports), shares, "share", folder / "shares.png"),
        _bars(list(reports), waits, "95th percentile of the wait, minutes", folder / "waits.png"),
    ]


def _bars(policies: list[str], groups: dict[str, list[float]], label: str, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(1.5 + 1.3 * len(groups), 4), layout="constrained")
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        places = [at + number * width for at in range(len(groups))]
        axes.bar(places, [values[number] for values in groups.values()], width, label=policy)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(groups))], list(groups))
    axes.set_ylabel(label)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
