"""Variants tried out: converted, timed side by side, and judged from the fastest on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from learnkit.backends.network import LAYOUT, Network, SessionNetwork
from learnkit.backends.registry import variant_name
from learnkit.bundle.siblings import BaseFiles
from learnkit.deploy.predictor import Predictor
from learnkit.errors import ExportError, MissingExtraError, OptimizeError
from learnkit.optimize import gates as gate
from learnkit.optimize.compare import answers, compare
from learnkit.optimize.convert import Converted, Converter
from learnkit.optimize.job import PROBES, Task
from learnkit.optimize.optimized import OptimizedPredictor
from learnkit.optimize.quality import Quality
from learnkit.optimize.relearn import CARRIED, learned_again
from learnkit.optimize.timing import Times, measure, torch_threads, was_busy

Run = Callable[[Tensor], object]


class Trials:
    """All that is tried for one task; the predictor of the task is left as it is."""

    def __init__(self, task: Task):
        self.task = task
        self.converter = Converter(task.predictor, task.samples, progress=task.progress)
        self.before = answers(task.predictor, task.test.pixels, progress=task.progress)
        self.strange_before = self._scores(task.predictor)
        self.base = _base(task.predictor)
        self.found: dict[str, Trial] = {}
        self.problems: dict[str, str] = {}
        self.busy = False
        self._references: dict[str, SessionNetwork] = {}

    def fastest_passing(
        self, pairs: Sequence[tuple[str, str]], *, strict: bool = False
    ) -> Trial | None:
        """The fastest of these (backend, precision) that passes its gates; None if none does.

        Args:
            pairs: what to try.
            strict: raise what prevents a conversion, rather than note it and try the others.
        """
        new = [trial for pair in pairs if (trial := self._converted(*pair, strict=strict))]
        self._time(new)
        for trial in sorted(new, key=lambda one: one.milliseconds):
            self._judge(trial)
            if trial.passed:
                return trial
        return None

    def best(self, precision: str) -> Trial:
        """Of those judged, of this precision if there are any, the one that keeps most labels.

        Raises:
            OptimizeError: nothing could be converted.
        """
        judged = [one for one in self.found.values() if one.quality is not None]
        own = [one for one in judged if one.converted.precision == precision] or judged
        if not own:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.problems.items())
            raise OptimizeError(f"nothing could be converted ({reasons})")
        return max(own, key=lambda one: (one.quality.agreement, -one.milliseconds))

    def predictor(self, trial: Trial) -> OptimizedPredictor:
        """The predictor of a trial that was judged."""
        assert trial.predictor is not None
        return trial.predictor

    def _converted(self, backend: str, precision: str, *, strict: bool) -> Trial | None:
        """One variant ready to run; None, and a note of why, if it cannot be had."""
        name, task = variant_name(backend, precision), self.task
        try:
            converted = self.converter.convert(backend, precision, task.params, device=task.device)
            trial = Trial(converted, self._open(converted))
        except (ExportError, MissingExtraError, OptimizeError) as error:
            if strict:
                raise
            self.problems[name] = str(error)
            return None
        self.found[name] = trial
        return trial

    def _open(self, converted: Converted) -> SessionNetwork:
        task = self.task
        recipe = task.predictor.preprocessing
        return converted.open(recipe, threads=task.threads, device=task.device)

    def _time(self, trials: Sequence[Trial]) -> None:
        """Time the variants, float32 of each of their backends, and torch as it is, in turns."""
        if not trials:
            return
        runs = {trial.converted.name: self._run(trial.network) for trial in trials}
        references = {trial.converted.backend for trial in trials}
        names = {backend: variant_name(backend, "float32") for backend in references}
        for backend, name in names.items():
            if name not in runs:
                runs[name] = self._run(self._reference(backend))
        eager = Network(self.converter.model.to(self.task.device), self._recipe, owned=True)
        runs[EAGER] = self._run(eager)
        with torch_threads(max(trial.network.session.threads for trial in trials)):
            times = measure(
                runs,
                self.task.test.pixels,
                layouts={name: LAYOUT for name in runs if name != EAGER},
                batches=self.task.batches,
                progress=self.task.progress,
            )
        self.busy = self.busy or was_busy(times)
        for trial in trials:
            trial.times = times[trial.converted.name]
            trial.reference = times[names[trial.converted.backend]]
            trial.eager = times[EAGER]

    @property
    def _recipe(self) -> Any:
        return self.task.predictor.preprocessing

    def _run(self, network: Any) -> Run:
        predictor = self.task.predictor
        if predictor.continual is not None:
            return network.features
        n_classes = len(predictor.classes)
        return lambda images: network.outputs(images, n_classes)

    def _reference(self, backend: str) -> SessionNetwork:
        if backend not in self._references:
            name = variant_name(backend, "float32")
            if name in self.found:
                return self.found[name].network
            converted = self.converter.convert(
                backend, "float32", self.task.params, device=self.task.device
            )
            self._references[backend] = self._open(converted)
        return self._references[backend]

    def _judge(self, trial: Trial) -> None:
        """Give a trial its predictor, quality and verdicts."""
        task, source = self.task, self.task.predictor
        trial.predictor, trial.state = self._predictor(trial)
        after = answers(trial.predictor, task.test.pixels, progress=task.progress)
        strange = None
        if task.strange is not None:
            strange = (self.strange_before, self._scores(trial.predictor))
        trial.quality = compare(
            self.before,
            after,
            task.test,
            source.classes,
            multi_label=source.multi_label,
            threshold=source.threshold,
            strange=strange,
        )
        if trial.state.startswith(CARRIED):
            trial.state += f"; mean cosine of the features {trial.quality.feature_cosine:.4f}"
        trial.verdicts = verdicts_of(trial, task)

    def _predictor(self, trial: Trial) -> tuple[OptimizedPredictor, str]:
        """(the predictor, what became of its knowledge)."""
        task, source, tells = self.task, self.task.predictor, self.task.predictor.ood
        state = "the trained head is part of the network"
        if tells is not None:
            tells, state = learned_again(
                tells, source.network, trial.network, task.learned, progress=task.progress
            )
        predictor = OptimizedPredictor(
            trial.converted,
            source.preprocessing,
            source.classes,
            head=tells if source.continual is not None else None,
            detector=None if source.continual is not None else tells,
            multi_label=source.multi_label,
            threshold=source.threshold,
            base=self.base,
            metadata=source.metadata,
            network=trial.network,
        )
        predictor.probes = source.probes
        return predictor, state

    def _scores(self, predictor: Predictor) -> Tensor | None:
        """How unusual `predictor` takes the images of no known class for."""
        strange = self.task.strange
        return None if strange is None else answers(predictor, strange).scores


def _base(predictor: Predictor) -> BaseFiles:
    """The float32 model as files, as it is now; what prevents it is said when it is saved."""
    try:
        return predictor._as_files()
    except ExportError as error:
        return BaseFiles(problem=str(error))


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
