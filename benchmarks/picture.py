"""One picture of all results: how many times the speed of each peer, and what memory it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from harness.race import RESULTS

TITLES = {
    "sixty_four": "generate, 64 at once",
    "one": "generate, one sequence",
    "group": "generate, 16 samples of a 1,000-token prompt",
    "sft": "SFT",
    "dpo": "DPO",
    "grpo": "GRPO step",
    "lm_eval": "GSM8K, 8 exemplars",
}
INK, BAR, PEER, GRID = "#1f2430", "#2f6f9f", "#b8c0cc", "#e6e8ec"


def load(name: str) -> dict[str, Any]:
    """The rows of one results file, empty when it was not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else {}


def bars() -> list[tuple[str, str, float, float | None]]:
    """(work, peer, times its speed, share of its memory or None)."""
    found = []
    for name, row in load("generation").items():
        for key, times in row["ratios"].items():
            if times is not None:
                found.append((TITLES.get(name, name), key.split("/")[1], times, None))
    for name, row in load("training").items():
        if "speed" in row["ratios"]:
            found.append((TITLES[name], "TRL", row["ratios"]["speed"], row["ratios"]["memory"]))
    against = "lm-evaluation-harness"
    times = [row["ratios"]["posttrain/lm-eval"] for row in load("lm_eval").values()]
    return found + [(TITLES["lm_eval"], against, time, None) for time in times if time is not None]


def curves(axes: Any) -> None:
    """Speed against length and against the number of requests, each relative to its first point."""
    rows = load("growth")
    for axis, (name, by, label) in zip(
        axes,
        (("training", "length", "tokens in a row"), ("engine", "concurrent", "requests at once")),
        strict=True,
    ):
        points = rows.get(name, [])
        axis.plot(
            [p[by] for p in points],
            [p["tokens_per_second"] for p in points],
            "o-",
            color=BAR,
            lw=1.6,
            clip_on=False,
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks([p[by] for p in points], [str(p[by]) for p in points])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel(label)
        axis.set_title(
            ("training" if name == "training" else "generation") + ", tokens/s", loc="left", fontsize=10
        )
        axis.grid(axis="y", color=GRID)


def main() -> None:
    """Draw `results/benchmarks.svg`."""
    rows = bars()
    plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": INK})
    plt.rcParams.update({"xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "posttrain"})
    figure = plt.figure(figsize=(9, 1.4 + 0.34 * len(rows) + 2.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[max(1, 0.34 * len(rows)), 2.2])
    axis = figure.add_subplot(grid[0, :])
    places = range(len(rows))[::-1]
    axis.barh(list(places), [times for _, _, times, _ in rows], color=BAR, height=0.62)
    for place, (_, _, times, memory) in zip(places, rows, strict=True):
        said = f"{times:.1f}×" + ("" if memory is None else f", {memory:.2f} of its memory")
        axis.text(times, place, f" {said}", va="center")
    axis.axvline(1, color=INK, lw=0.8)
    axis.set_yticks(list(places), [f"{work}  against {peer}" for work, peer, _, _ in rows])
    axis.set_xlim(0, 1.25 * max([times for _, _, times, _ in rows], default=1))
    axis.set_title("Speed, as a multiple of the peer's on the same machine", loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
    below = [figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])]
    curves(below)
    for one in below:
        one.spines[["top", "right"]].set_visible(False)
    path = Path(RESULTS) / "benchmarks.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
