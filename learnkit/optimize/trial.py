"""What is to be converted, and one variant tried: converted, timed, judged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from learnkit.backends.session_network import SessionNetwork
from learnkit.optimize import gates as gate
from learnkit.optimize.convert import Converted
from learnkit.optimize.job import PROBES, Task
from learnkit.optimize.optimized import OptimizedPredictor
from learnkit.optimize.quality import Quality
from learnkit.optimize.timing import Times

EAGER = "eager torch"
_STORAGE = {("onnxruntime", "float16"), ("openvino", "float16")}


@dataclass(eq=False)
class Trial:
    """One variant: converted and timed; with a predictor and its quality once it is judged."""

    converted: Converted
    network: SessionNetwork
    times: Mapping[int, Times] = field(default_factory=dict)
    reference: Mapping[int, Times] = field(default_factory=dict)
    eager: Mapping[int, Times] = field(default_factory=dict)
    predictor: OptimizedPredictor | None = None
    state: str = ""
    quality: Quality | None = None
    verdicts: tuple[gate.Verdict, ...] = ()

    @property
    def milliseconds(self) -> float:
        """Geometric mean of the medians per image: what "fastest" means."""
        logs = [math.log(times.median / batch) for batch, times in self.times.items()]
        return math.exp(sum(logs) / len(logs))

    @property
    def passed(self) -> bool:
        """Whether it is judged and no gate failed."""
        return self.quality is not None and gate.passes(self.verdicts)


def verdicts_of(trial: Trial, task: Task) -> tuple[gate.Verdict, ...]:
    """What every gate says of a trial with a quality."""
    found = trial.quality
    assert found is not None
    gates, converted = task.gates, trial.converted
    is_float32 = converted.precision == "float32"
    reference = EAGER if is_float32 else f"float32 in {converted.backend}"
    if (converted.backend, converted.precision) in _STORAGE:
        reference = ""
    times = trial.eager if is_float32 else trial.reference
    ratios = {b: times[b].median / t.median for b, t in trial.times.items()}
    n = 0 if task.what == PROBES else found.n
    return (
        gate.judge_finite(found.n_broken, found.n),
        gate.judge_agreement(found.n_same if n else 0, n, gates),
        gate.judge_accuracy(found.n_lost, found.n_gained, found.n_labelled, gates),
        gate.judge_speed(ratios, reference, gates),
    )
