"""Heatmaps of predictors: each method against the function it stands on, and what is refused."""

import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from deploy_helpers import CLASSES, make_model, make_predictor
from PIL import Image
from torch.nn.functional import interpolate

from learnkit.continual.classifier import ContinualClassifier
from learnkit.data.preprocess import Preprocessing
from learnkit.deploy.predictor import Predictor
from learnkit.errors import ImageReadError, InterpretationError
from learnkit.inference.heatmap import Heatmap
from learnkit.interpret.gradcam import grad_cam, guided_backprop
from learnkit.interpret.occlusion import occlusion_map

PLACES = [2, 0]


def picture(seed=0, size=(32, 32)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor():
    return make_predictor(make_model(size=64), size=64)


def by_hand(predictor, image, method):
    """The maps (K, H, W) of the functions themselves."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    x = predictor.preprocessing.normalize(pixels).repeat(len(PLACES), 1, 1, 1)
    cam = grad_cam(predictor.model, x, PLACES, plus_plus=method == "gradcam++")
    cam = interpolate(cam[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    if method == "guided":
        cam = cam * guided_backprop(predictor.model, x, PLACES).abs().sum(1)
    cam = cam.detach().numpy()
    strongest = np.quantile(cam, 0.995 if method == "guided" else 1, axis=(1, 2), keepdims=True)
    return np.minimum(cam / np.maximum(strongest, 1e-12), 1)  # or all 0


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "guided"])
def test_methods_of_gradients_are_their_functions_scaled(predictor, method):
    image = picture(size=(64, 64))
    found = predictor.heatmap(image, method, [CLASSES[place] for place in PLACES])
    assert list(found.maps) == [CLASSES[place] for place in PLACES]
    np.testing.assert_allclose(
        np.stack(list(found.maps.values())), by_hand(predictor, image, method), atol=1e-5
    )
    assert {float(heat.max()) for heat in found.maps.values()} - {0.0} == {1.0}
    assert (found.image == image).all()


def test_occlusion_is_its_function_of_the_probabilities(predictor):
    image = picture(size=(64, 64))
    sizes = {"feature_size": 20, "sampling_size": 12}
    found = predictor.heatmap(image, "occlusion", CLASSES[1], progress=False, **sizes)

    def probabilities(images):
        return np.stack([one.probs.numpy() for one in predictor.try_loaded(images)])

    (expected,) = occlusion_map(probabilities, image, [1], **sizes)
    np.testing.assert_array_equal(found.maps[CLASSES[1]], expected)
    assert found.confidences[CLASSES[1]] == float(predictor.predict(image).probs[1])


def test_the_target_is_what_is_predicted_unless_said(predictor):
    image = picture()
    assert list(predictor.heatmap(image).maps) == [predictor.predict(image).label]
    assert list(predictor.heatmap(image, target=CLASSES * 2).maps) == CLASSES


def test_labels_of_a_multi_label_model_are_explained_one_by_one():
    low = make_predictor(make_model(), multi_label=True, threshold=0.001)
    assert list(low.heatmap(picture(), progress=False).maps) == CLASSES
    high = make_predictor(make_model(), multi_label=True, threshold=0.999)
    with pytest.raises(InterpretationError, match="no label to explain; name the class, `target"):
        high.heatmap(picture())


def test_a_model_in_the_continual_state_is_explained_too():
    body = make_model(size=64)[0]
    head = ContinualClassifier(body(torch.zeros(1, 3, 64, 64)).shape[1])
    predictor = Predictor(torch.nn.Sequential(body, head), make_predictor(size=64).preprocessing)
    images = [picture(seed) for seed in range(8)]
    predictor.extend(images, labels=["a", "b"] * 4, progress=False)
    found = predictor.heatmap(images[0], target=["a", "b"])
    assert [heat.shape for heat in found.maps.values()] == [(64, 64)] * 2
    assert all(np.isfinite(heat).all() for heat in found.maps.values())
    covered = predictor.heatmap(images[0], "occlusion", sampling_size=20, progress=False)
    assert next(iter(covered.maps.values())).any()


def test_a_shared_network_is_left_training(predictor):
    model = make_model().train()
    shared = make_predictor(model)
    for method in ("gradcam", "guided"):
        shared.heatmap(picture(), method)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_by_name_is_the_layer_itself(predictor):
    name = "0.blocks.1" if "0.blocks.1" in dict(predictor.model.named_modules()) else "0"
    layer = dict(predictor.model.named_modules())[name]
    by_name, by_module = (predictor.heatmap(picture(), layer=one) for one in (name, layer))
    for one in by_name.maps:
        np.testing.assert_array_equal(by_name.maps[one], by_module.maps[one])
    with pytest.raises(InterpretationError, match=r"`layer` is '0\.block', .* did you mean '0\."):
        predictor.heatmap(picture(), layer="0.block")


# -- share in a mask ------------------------------------------------------------------------------


def of(heat):
    return Heatmap("gradcam", np.zeros((*heat.shape, 3), np.uint8), {"a": heat}, {"a": 0.5})


def test_the_share_is_the_part_of_the_heat_inside():
    heat = np.zeros((4, 6), np.float32)
    heat[0, 0], heat[3, 5] = 0.25, 1
    mask = np.zeros((4, 6), bool)
    mask[:2] = True
    assert of(heat).share(mask) == pytest.approx(0.2)
    assert of(heat).share(~mask) == pytest.approx(0.8)
    assert of(heat).share(np.kron(mask, np.ones((3, 3), np.uint8) * 255)) == pytest.approx(0.2)
    assert of(heat - 0.1).share(mask) == pytest.approx(0.15 / 1.05)


def test_without_heat_there_is_no_share_and_it_is_said():
    cold = of(np.zeros((4, 4), np.float32))
    assert np.isnan(cold.share(np.ones((4, 4))))
    assert "no part of the image speaks for a (50.0 %)" in repr(cold)
    title = cold.plot().get_title().replace("\n", " ")
    assert title == "no part of the image speaks for a (50.0 %)"


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((4, 6)), "`mask` is 0 everywhere"),
        (np.ones((6, 4)), r"`mask` has shape \(6, 4\); it is \(H, W\) in the proportions"),
        (np.ones((4, 6, 3)), r"`mask` has shape \(4, 6, 3\)"),
        (np.ones((0, 6)), r"`mask` has shape \(0, 6\)"),
    ],
)
def test_masks_that_fit_no_image_are_refused(mask, said):
    with pytest.raises(InterpretationError, match=said):
        of(np.ones((4, 6), np.float32)).share(mask)


def test_only_classes_that_were_asked_for_have_a_share():
    with pytest.raises(InterpretationError, match="`target` is 'b'; maps were made of 'a'"):
        of(np.ones((4, 6), np.float32)).share(np.ones((4, 6)), "b")


# -- pictures -------------------------------------------------------------------------------------


def test_it_shows_itself_as_a_picture_and_a_sentence(predictor):
    found = predictor.heatmap(picture(), target=CLASSES)
    shown = Image.open(io.BytesIO(found._repr_png_()))
    assert shown.format == "PNG"
    assert min(shown.size) > 200
    prob = float(predictor.predict(picture()).probs[0])
    assert f"what speaks for ok ({100 * prob:.1f} %)" in repr(found)
    assert repr(found).startswith("Heatmap by Grad-CAM, 64x64 px: ")
    assert len(found.plot()) == 3


def test_plots_are_shown_by_pyplot_and_showing_itself_leaves_none(predictor):
    found = predictor.heatmap(picture(), target=CLASSES)
    first = found.plot()[0]
    assert plt.gcf() is first.figure
    assert plt.get_fignums() == [first.figure.number]
    for _ in range(3):
        found._repr_png_()
    assert plt.get_fignums() == [first.figure.number]
    _, own = plt.subplots()
    assert of(np.ones((4, 4), np.float32)).plot(ax=own) is own
    assert len(plt.get_fignums()) == 2


def test_names_are_text_and_grey_images_are_grey():
    recipe = Preprocessing(32, channels=1, mean=(0.5,), std=(0.5,))
    grey = Predictor(make_model(n_in=1), recipe, ["$x_$", "b", "c"])
    found = grey.heatmap(picture()[:, :, 0], target="$x_$")
    assert found.image.shape == (32, 32, 1)
    assert found._repr_png_()
    assert "$x_$" in found.plot().get_title()


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "cam"}, "`method` is 'cam'; choose one of 'gradcam', 'gradcam++', 'guided', "),
        ({"method": ["gradcam"]}, "`method` is ['gradcam']; choose one of"),
        ({"target": "wasp"}, "`target`: 'wasp' is no class; the classes are 'ok', 'NO', "),
        ({"target": []}, "`target`: no class is named"),
        ({"target": 1}, "`target` is 1; give the name of a class, or several"),
        ({"target": [0, 1]}, "`target`: 0 is no class"),
        ({"feature_size": 9}, "`feature_size` is no option of Grad-CAM: "),
        ({"stride": 9}, "`stride` is no option of a heatmap; there are "),
        ({"method": "occlusion", "layer": "0"}, "`layer` is given, and method='occlusion' looks"),
        ({"method": "occlusion", "sampling_size": 40}, "`sampling_size` is 40 and `feature_size`"),
    ],
)
def test_what_makes_no_sense_is_refused(predictor, asked, said):
    with pytest.raises(InterpretationError, match=re.escape(said)):
        predictor.heatmap(picture(), **asked)


def test_an_image_that_is_none_is_named(predictor, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"x\.png"):
        predictor.heatmap(tmp_path / "x.png")
