"""Variants tried out: converted, timed side by side, and compared from the fastest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from learnkit.backends.conversion import Converted
from learnkit.backends.ort_session import ONNX_DEVICES
from learnkit.backends.registry import variant_name
from learnkit.backends.session import Session
from learnkit.backends.torch_session import Network, channels_last
from learnkit.continual.fingerprints import Learned
from learnkit.errors import ExportError, MissingExtraError, OptimizeError
from learnkit.inference.model import Model
from learnkit.models.eval_mode import torch_threads
from learnkit.optimize import gates as gate
from learnkit.optimize.compare import answers, compare
from learnkit.optimize.convert import Converter
from learnkit.optimize.job import PROBES, Job
from learnkit.optimize.quality import Quality
from learnkit.optimize.relearn import CARRIED, learned_again
from learnkit.optimize.timing import Times, measure


def optimism_about(model: Model, features: Tensor) -> tuple[str, ...]:
    """Notes where test images, by their features (N, D), were learned or decide a threshold."""
    if model.ood is None or not features.shape[1]:
        return ()
    learned = Learned.of(model.ood.knowledge)
    notes = learned.notes(learned.on_grid(features.numpy()))
    return tuple(f"of the test images {note}, before and after alike" for note in notes)


class Trials:
    """All that is tried for one job; the model of the job is left as it is."""

    def __init__(self, job: Job):
        self.job = job
        self.converter = Converter(job.source, job.samples, progress=job.progress)
        self.before = answers(job.source, job.test.pixels, progress=job.progress)
        self.notes = (*job.notes, *optimism_about(job.source, self.before.features))
        self.unknown_before = self._scores(job.source)
        self.found: dict[str, Trial] = {}
        self.problems: dict[str, str] = {}
        self._references: dict[str, Session] = {}

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
        # the fastest first: to compare takes all test images, and may mean to learn again
        for trial in sorted(new, key=lambda one: one.milliseconds):
            self._compare(trial)
            if trial.passed:
                return trial
        return None

    def best(self, precision: str) -> Trial:
        """Of those compared, of this precision if there are any, the one that keeps most labels.

        Raises:
            OptimizeError: nothing could be converted.
        """
        compared = [one for one in self.found.values() if one.quality is not None]
        own = [one for one in compared if one.converted.precision == precision] or compared
        if not own:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.problems.items())
            raise OptimizeError(f"nothing could be converted ({reasons})")
        return max(own, key=lambda one: (one.quality.agreement, -one.milliseconds))

    def _converted(self, backend: str, precision: str, *, strict: bool) -> Trial | None:
        """One variant ready to run; None, and a note of why, if it cannot be had."""
        name, job = variant_name(backend, precision), self.job
        try:
            converted = self.converter.convert(backend, precision, job.params, device=job.device)
            trial = Trial(converted, self._open(converted))
        except (ExportError, MissingExtraError, OptimizeError) as error:
            if strict:
                raise
            self.problems[name] = str(error)
            return None
        self.found[name] = trial
        return trial

    def _open(self, converted: Converted) -> Session:
        job = self.job
        return converted.open(job.source.preprocessing, threads=job.threads, device=job.device)

    def _time(self, trials: Sequence[Trial]) -> None:
        """Time the variants, float32 of each of their backends, and torch as it is, in turns."""
        if not trials:
            return
        runs = {trial.converted.name: trial.network.run for trial in trials}
        references = {trial.converted.backend for trial in trials}
        names = {backend: variant_name(backend, "float32") for backend in references}
        for backend, name in names.items():
            if name not in runs:
                runs[name] = self._reference(backend).run
        job = self.job
        # where torch has no such device it runs on the processor: that is what there was before
        model = self.converter.model.to("cpu" if job.device in ONNX_DEVICES else job.device)
        is_open = job.source.head is not None
        runs[EAGER] = Network(model, job.source.preprocessing, owned=True, continual=is_open).run
        # eager torch is to have as many as the variants it is compared with
        with torch_threads(max(trial.network.threads for trial in trials)):
            images = channels_last(job.test.pixels)
            times = measure(runs, images, batches=job.batches, progress=job.progress)
        for trial in trials:
            trial.times = times[trial.converted.name]
            trial.reference = times[names[trial.converted.backend]]
            trial.eager = times[EAGER]

    def _reference(self, backend: str) -> Session:
        if backend not in self._references:
            name = variant_name(backend, "float32")
            if name in self.found:
                return self.found[name].network
            converted = self.converter.convert(
                backend, "float32", self.job.params, device=self.job.device
            )
            self._references[backend] = self._open(converted)
        return self._references[backend]

    def _compare(self, trial: Trial) -> None:
        """Give a trial its model, quality and verdicts."""
        job, source = self.job, self.job.source
        trial.model, trial.state = self._model(trial)
        after = answers(trial.model, job.test.pixels, progress=job.progress)
        unknown = None
        if job.unknown is not None:
            unknown = (self.unknown_before, self._scores(trial.model))
        trial.quality = compare(
            self.before,
            after,
            job.test,
            source.classes,
            multi_label=source.multi_label,
            threshold=source.threshold,
            unknown=unknown,
        )
        if trial.state.startswith(CARRIED):
            trial.state += f"; mean cosine of the features {trial.quality.feature_cosine:.4f}"
        trial.verdicts = verdicts_of(trial, job)

    def _model(self, trial: Trial) -> tuple[Model, str]:
        """(the model over the converted network, what became of its knowledge)."""
        job, source, ood = self.job, self.job.source, self.job.source.ood
        state = "the trained head is part of the network"
        if ood is not None:
            ood, state = learned_again(
                ood,
                source.network,
                trial.network,
                source.preprocessing,
                job.learned,
                progress=job.progress,
            )
        model = source.replace(
            network=trial.network,
            names=source.classes,
            head=None if source.head is None else ood,
            detector=None if source.head is not None else ood,
            # `has_learned` compares with these: learning again was no change
            measured=None if ood is None else ood.statistics,
            variant=trial.converted.name,
            converted=trial.converted,
            digest=None,
            siblings=None,
        )
        return model, state

    def _scores(self, model: Model) -> Tensor | None:
        """The OOD scores `model` gives the images of no known class."""
        unknown = self.job.unknown
        return None if unknown is None else answers(model, unknown).scores


EAGER = "eager torch"


# weights are only stored in half precision: smaller, not faster
_STORAGE = {("onnxruntime", "float16"), ("openvino", "float16")}


@dataclass(eq=False)
class Trial:
    """One variant: converted and timed; with a model and its quality once it is compared."""

    converted: Converted
    network: Session
    times: Mapping[int, Times] = field(default_factory=dict)
    reference: Mapping[int, Times] = field(default_factory=dict)
    eager: Mapping[int, Times] = field(default_factory=dict)
    model: Model | None = None
    state: str = ""
    quality: Quality | None = None
    verdicts: tuple[gate.Verdict, ...] = ()

    @property
    def milliseconds(self) -> float:
        """Geometric mean of the times per image: what "fastest" means."""
        logs = [math.log(times.best / batch) for batch, times in self.times.items()]
        return math.exp(sum(logs) / len(logs))

    @property
    def passed(self) -> bool:
        """Whether it is compared and no gate failed."""
        return self.quality is not None and gate.passes(self.verdicts)


def verdicts_of(trial: Trial, job: Job) -> tuple[gate.Verdict, ...]:
    """What every gate says of a trial with a quality."""
    found = trial.quality
    assert found is not None
    gates, converted = job.gates, trial.converted
    is_float32 = converted.precision == "float32"
    reference = EAGER if is_float32 else f"float32 in {converted.backend}"
    if (converted.backend, converted.precision) in _STORAGE:
        reference = ""
    times = trial.eager if is_float32 else trial.reference
    ratios = {b: times[b].best / t.best for b, t in trial.times.items()}
    disturbed = (one[b].disturbed for b in trial.times for one in (trial.times, times))
    # labels of probes, which may be noise, prove nothing
    n = 0 if job.what == PROBES else found.n
    return (
        gate.finite_verdict(found.n_broken, found.n),
        gate.agreement_verdict(found.n_same if n else 0, n, gates),
        gate.accuracy_verdict(found.n_lost, found.n_gained, found.n_labelled, gates),
        gate.speed_verdict(ratios, reference, gates, next(filter(None, disturbed), "")),
    )
