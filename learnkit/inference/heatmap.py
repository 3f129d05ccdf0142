"""The heatmap: which part of an image speaks for a class, by one of four methods."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from learnkit.errors import InterpretationError, first_few
from learnkit.inference.batch import BATCH
from learnkit.inference.prediction import predictions, raised
from learnkit.interpret.occlusion import occlusion_map
from learnkit.report.document import share_text
from learnkit.report.progress import watched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import nn

    from learnkit.inference.model import Model

Array = np.ndarray

METHODS = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "guided": "guided Grad-CAM",
    "occlusion": "occlusion",
}
_OF_OCCLUSION = {"feature_size", "sampling_size"}


@dataclass(frozen=True, eq=False, repr=False)
class Heatmap:
    """A heatmap of one image: for each class asked for, how much each pixel speaks for it.

    Attributes:
        method: how it was made, one of `METHODS`.
        image: as the network sees it, uint8 (H, W, channels).
        maps: by class name, float32 (H, W). Of the three methods of gradients in 0..1, the
            strongest pixel being 1, of guided Grad-CAM the strongest half percent; all 0 where
            nothing speaks for the class. Of occlusion the mean loss of confidence where the pixel
            is covered, in -1..1.
        confidences: by class name the probability of the class, 0..1.
    """

    method: str
    image: Array
    maps: dict[str, Array] = field(default_factory=dict)
    confidences: dict[str, float] = field(default_factory=dict)

    def share(self, mask: Any, target: str | None = None) -> float:
        """Share of the heat that lies inside a mask, 0..1; NaN if there is no heat at all.

        Only what speaks for the class is heat: negative values of occlusion are none.

        Args:
            mask: (H, W) of the image as the network sees it, or of any other size with its
                proportions; what is not 0 is inside.
            target: the class; default the only, or the first, one.

        Raises:
            InterpretationError: a mask of other proportions or nowhere set, or a class that was not
                asked for.
        """
        heat = np.maximum(self.maps[self._class(target)], 0).astype(np.float64)
        inside = _resized_mask(mask, heat.shape)
        return float(heat[inside].sum() / heat.sum()) if heat.any() else float("nan")

    def plot(self, *, alpha: float = 0.55, cmap: str = "magma", ax: Any = None) -> Any:
        """Draw each map over the image; return the Axes, an array of them for several classes.

        Notebooks and `plt.show()` show it; in a loop, close each figure with `plt.close()`.

        Args:
            alpha: opacity of the strongest heat; no heat is transparent.
            cmap: colours of matplotlib.
            ax: where to draw one class, or a sequence of as many as there are classes; a new figure
                if None.
        """
        from learnkit.interpret.plots import axes_grid

        n = len(self.maps)
        new = {"n_cols": min(n, 4), "cell": (3.2, 3.5), "figsize": None}
        axes = axes_grid(n, **new) if ax is None else np.atleast_1d(ax)
        for one, name in zip(axes, self.maps, strict=True):
            self._draw(one, name, alpha, cmap)
        return axes[0] if n == 1 else axes

    def _draw(self, ax: Axes, name: str, alpha: float, cmap: str) -> None:
        heat = np.maximum(self.maps[name], 0)
        gray = {"cmap": "gray", "vmin": 0, "vmax": 255}
        ax.imshow(self.image.squeeze(-1) if self.image.shape[-1] == 1 else self.image, **gray)
        if heat.any():
            ax.imshow(heat, cmap=cmap, vmin=0, vmax=heat.max(), alpha=alpha * heat / heat.max())
        # names are text, not formulas; matplotlib's own wrapping reads them as such
        ax.set_title(fill(self._sentence(name), 36), fontsize=9, parse_math=False)
        ax.axis("off")

    def _sentence(self, name: str) -> str:
        if not (self.maps[name] > 0).any():
            return f"no part of the image speaks for {name} ({share_text(self.confidences[name])})"
        return f"what speaks for {name} ({share_text(self.confidences[name])})"

    def _class(self, target: str | None) -> str:
        name = next(iter(self.maps)) if target is None else target
        if name not in self.maps:
            asked = ", ".join(map(repr, self.maps))
            raise InterpretationError(f"`target` is {target!r}; maps were made of {asked}")
        return name

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        said = "; ".join(map(self._sentence, self.maps))
        return f"Heatmap by {METHODS[self.method]}, {height}x{width} px: {said}"

    def _repr_png_(self) -> bytes:
        import matplotlib.pyplot as plt

        file = BytesIO()
        with plt.ioff():
            figure = np.ravel(self.plot())[0].figure
        # else pyplot keeps it, and a notebook shows it once more
        plt.close(figure)
        figure.savefig(file, format="png", dpi=100)
        return file.getvalue()


def explain(
    model: Model,
    image: Array,
    *,
    method: str,
    target: str | Sequence[str] | None,
    layer: Any = None,
    progress: bool = True,
    **options: int,
) -> Heatmap:
    """The heatmap of an image uint8 (H, W, channels) as the network takes it.

    Raises:
        InterpretationError: an unknown method, option, class or layer; or a network that cannot be
            explained that way.
        PredictionError: the network's output is not finite.
    """
    _check(method, layer, options)
    (found,) = map(raised, predictions(model, image[None]))
    names = _targets(target, model.classes, found.label, model.multi_label)
    places = [model.classes.index(name) for name in names]
    if method == "occlusion":
        maps = occlusion_map(
            lambda images: np.stack([raised(one).probs for one in predictions(model, images)]),
            image,
            places,
            watch=lambda them: iter(watched(them, len(them), progress, "heatmap", "batches")),
            **options,
        )
    else:
        maps = _by_gradients(model, image, places, method, layer)
    probs = [float(found.probs[place]) for place in places]
    return Heatmap(
        method,
        image,
        dict(zip(names, maps, strict=True)),
        dict(zip(names, probs, strict=True)),
    )


def evidence_of_files(model: Model, sources: Sequence[Any], places: Sequence[int]) -> Any:
    """Grad-CAM maps (h, w), at the feature map's size, of each image for one class.

    None where there are none: no gradients, as of a converted network, or no feature map.

    Args:
        model: says it.
        sources: images of any kind that can be predicted.
        places: the number of a class for each.

    Raises:
        ImageReadError: an image cannot be read.
    """
    alone = getattr(model.network, "alone", None)
    if alone is None or not len(sources):
        return None
    import torch

    from learnkit.interpret.gradcam import grad_cam

    maps: list[Array] = []
    for start in range(0, len(sources), BATCH):
        chunk = slice(start, start + BATCH)
        pixels = np.stack([model.preprocessing.pixels(one) for one in sources[chunk]])
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(model.network.device)
        with alone() as network:
            x = model.preprocessing.normalize(batch)
            try:
                found = grad_cam(network, x, list(places[chunk]))
            except InterpretationError:
                return None
        maps += list(found.float().cpu().numpy())
    return maps


def _check(method: object, layer: object, options: dict[str, int]) -> None:
    if not isinstance(method, str) or method not in METHODS:
        raise InterpretationError(
            f"`method` is {method!r}; choose one of {', '.join(map(repr, METHODS))}"
        )
    known = _OF_OCCLUSION if method == "occlusion" else set()
    if other := sorted(set(options) - known):
        raise InterpretationError(
            f"`{other[0]}` is no option of {METHODS[method]}: `feature_size` and `sampling_size` "
            "belong to method='occlusion'"
            if other[0] in _OF_OCCLUSION
            else f"`{other[0]}` is no option of a heatmap; there are `target`, `layer`, and for "
            "method='occlusion' `feature_size` and `sampling_size`"
        )
    if layer is not None and method == "occlusion":
        raise InterpretationError(
            "`layer` is given, and method='occlusion' looks into no layer; leave it out"
        )


def _targets(
    target: Any, classes: Sequence[str], label: str | Sequence[str], multi_label: bool
) -> list[str]:
    """Names of the classes to explain, each once."""
    if target is None:
        target = label
        if multi_label and not label:
            raise InterpretationError(
                "the image has no label to explain; name the class, `target=NAME`"
            )
    if not isinstance(target, str | Sequence):
        raise InterpretationError(
            f"`target` is {target!r}; give the name of a class, or several of them"
        )
    names = [target] if isinstance(target, str) else list(target)
    unknown = [name for name in names if name not in classes]
    if unknown or not names:
        found = f"{unknown[0]!r} is no class" if unknown else "no class is named"
        raise InterpretationError(
            f"`target`: {found}; the classes are {first_few(list(map(repr, classes)))}"
        )
    return list(dict.fromkeys(names))


def _by_gradients(
    model: Model, image: Array, places: list[int], method: str, layer: Any
) -> list[Array]:
    """Maps float32 (H, W) in 0..1 by one of the methods of gradients."""
    alone = getattr(model.network, "alone", None)
    if alone is None:
        raise InterpretationError(
            f"`method` is {method!r}, and the network, of {model.network.backend}, has no "
            "gradients; take the weights as trained, load_learner(path, variant='float32'), or "
            "method='occlusion'"
        )
    import torch

    from learnkit.interpret.gradcam import grad_cam, guided_backprop

    with alone() as network:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(model.network.device)
        x = model.preprocessing.normalize(pixels).repeat(len(places), 1, 1, 1)
        plus_plus = {"plus_plus": method == "gradcam++"}
        found = grad_cam(network, x, places, layer=_layer(network, layer), **plus_plus)
        cam = torch.nn.functional.interpolate(
            found[:, None], image.shape[:2], mode="bilinear", align_corners=False
        )[:, 0]
        if method == "guided":
            cam = cam * guided_backprop(network, x, places).abs().sum(1)
    # a few single pixels outshine all others where the map goes down to pixels
    share = 0.995 if method == "guided" else 1.0
    strongest = cam.flatten(1).quantile(share, 1)[:, None, None]
    scaled = torch.where(strongest > 0, cam / strongest, 0.0).clamp_max(1)
    return list(scaled.float().cpu().numpy())


def _layer(network: nn.Module, layer: Any) -> Any:
    """The module of this name, or the module itself."""
    if not isinstance(layer, str):
        return layer
    modules = dict(network.named_modules())
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, 3)
        raise InterpretationError(
            f"`layer` is {layer!r}, which is no module of the network"
            + (f"; did you mean {', '.join(map(repr, near))}?" if near else "")
        )
    return modules[layer]


def _resized_mask(mask: Any, shape: tuple[int, ...]) -> Array:
    """A mask as bool (H, W): the nearest pixel of one of another size."""
    mask = np.asarray(mask)
    if (
        mask.ndim != 2
        or not mask.size
        or abs(mask.shape[0] * shape[1] / mask.shape[1] - shape[0]) >= 1
    ):
        raise InterpretationError(
            f"`mask` has shape {mask.shape}; it is (H, W) in the proportions of the image as the "
            f"network sees it, {shape}"
        )
    rows, columns = (
        # from middle to middle: by its corner a pixel would be off by up to half of one
        ((np.arange(n) + 0.5) * has / n).astype(int)
        for n, has in zip(shape, mask.shape, strict=True)
    )
    inside = mask[np.ix_(rows, columns)] != 0
    if not inside.any():
        raise InterpretationError("`mask` is 0 everywhere; what is not 0 is inside")
    return inside
