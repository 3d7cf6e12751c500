"""lm-evaluation-harness's rules, its filters and its metric, on outputs that were written elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluate_lm_eval import evaluator

from serve import serve


def prepare(settings: dict[str, Any]) -> Any:
    from lm_eval.api.model import LM

    class Stored(LM):
        outputs: list[str] = []  # noqa: RUF012

        def generate_until(self, requests: list[Any]) -> list[str]:
            return self.outputs

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise ValueError("stored outputs have no log-probabilities")

        loglikelihood_rolling = loglikelihood

    evaluate, model = evaluator(settings), Stored()

    def work() -> dict[str, float]:
        found = {}
        for name, model.outputs in settings["outputs"].items():
            found[name] = evaluate(model, settings["samples"], chat=False)
        Path(settings["out"]).write_text(json.dumps(found), encoding="utf-8")
        return {"outputs": float(sum(map(len, found.values())))}

    return work


if __name__ == "__main__":
    serve(prepare)
