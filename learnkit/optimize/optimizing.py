"""The verb that makes a predictor faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learnkit.optimize.conversion_report import ConversionReport
    from learnkit.optimize.gates import Gates
    from learnkit.optimize.optimized import OptimizedPredictor


class Optimizing:
    """How a `Predictor` becomes a faster one."""

    def optimize(
        self,
        precision: str = "float32",
        samples: Any = None,
        *,
        backend: str = "auto",
        device: str = "cpu",
        test: Any = None,
        ood: Any = None,
        learned: Any = None,
        force: bool = False,
        fallback: bool = False,
        threads: int | None = None,
        gates: Gates | None = None,
        batch_size: int | None = None,
        progress: bool = True,
        **backend_params: Any,
    ) -> tuple[OptimizedPredictor, ConversionReport]:
        """(a faster predictor, the report that proves what it cost); this one stays as it is.

        The converted network is held against this one on images that had no part in the conversion,
        and timed side by side with it. If it fails a gate it is refused: by default 99 % of the
        labels stay, accuracy drops by 0.5 points at most, and it is 1.1 times as fast.

        What the model knows of its classes is learned again from the converted network's features,
        if the images it has learned from are at hand (`learned`, or all of them in `samples`);
        otherwise it is carried over, and the report says how far the features moved.

        Args:
            precision: "float32", "float16" (smaller files), "bfloat16" or "int8".
            samples: images that int8 takes its ranges from: 10 to 20 of each class as they come in
                use. A dataset (its training images), a folder with one folder per class or with
                images, or images of any kind `predict` takes. Other precisions need none.
            backend: "onnxruntime", "openvino" or "torch"; "auto" tries all that are possible here
                and takes the fastest that passes. `learnkit.devices()` lists them.
            device: "cpu", or "cuda" where the backend has it.
            test: images to judge it by, 500 or more, best with labels; as `samples`, but of a
                dataset the test images, else the validation images. Without it a third of
                `samples` is set apart.
            ood: images of no class the model knows: are they still told apart?
            learned: the images this model has learned, all of them: a dataset, or a folder.
            force: take it even if it fails a gate.
            fallback: take the fastest other precision that passes if this one does not.
            threads: processor threads one prediction may use; default all this process may use.
            gates: other limits; see `Gates`.
            batch_size: the batch that is timed beside a single image, default 16; where a backend
                can be made for one size of batch, it is made for the one given.
            progress: show progress bars.
            **backend_params: the backend's own, see `learnkit.devices()`; for int8 also `max_error`
                (0.12: how far features may move, relative to their spread over the samples),
                `target` (0.99: labels of samples that stay, under a trained head) and `keep` (names
                of layers that stay in float32, instead of a search for them).

        Raises:
            ConversionRefusedError: it fails a gate; the error's `report` has the details.
            OptimizeError: samples that are missing, of unknown classes, or all the same; optimised
                already.
            BackendUnavailableError: this machine cannot do that; the message names what it can.
            MissingExtraError: the backend is not installed; the message has the pip line.
            ExportError: the network has operators that ONNX has not, or no body.
            UnreadableImagesError: images cannot be read; all of them are named.
        """
        from learnkit.optimize.job import Given, task_of
        from learnkit.optimize.optimize import candidates, cheaper, fastest

        wanted = candidates(backend, precision, device, backend_params)
        task = task_of(
            self,
            precision,
            Given(samples, test, ood, learned),
            gates=gates,
            batch_size=batch_size,
            params=backend_params,
            progress=progress,
            device=device,
            threads=threads,
        )
        instead = cheaper(precision, backend, device) if fallback else None
        return fastest(task, wanted, instead, force=force)
