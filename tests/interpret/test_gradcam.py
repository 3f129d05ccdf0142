"""Grad-CAM against closed forms, full autograd and the published package."""

import contextlib

import pytest
import timm
import torch
from torch import nn

from learnkit.errors import InterpretationError
from learnkit.interpret.gradcam import grad_cam, guided_backprop
from learnkit.models.create import create_cnn_model


def small_model(*, n_out=3, head=()):
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 6, 3)
    )
    layers = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head, nn.Linear(6, n_out)]
    return nn.Sequential(body, nn.Sequential(*layers)).eval()


def timm_model(arch, *, n_out=4, img_size=None):
    """A timm CNN as (body, head), with norms and head moved away from their uniform start."""
    net = timm.create_model(arch, num_classes=0, global_pool="")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    width = net(torch.zeros(1, 3, 64, 64)).shape[1]
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, n_out)
    )
    return nn.Sequential(net, head).eval()


def slow_cam(model, x, classes):
    """Maps without ReLU, image by image, gradients through the whole network by `backward`."""
    cams = []
    for image, c in zip(x, classes, strict=True):
        feature_map = model[0](image[None])
        feature_map.retain_grad()
        model[1](feature_map.clone())[0, c].backward()
        weights = feature_map.grad.mean((2, 3), keepdim=True)
        cams.append((weights * feature_map.detach()).sum(1))
    model.zero_grad()
    return torch.cat(cams)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]


# -- what it computes -----------------------------------------------------------------------------


def test_linear_head_over_average_pool_has_the_closed_form():
    model, x = small_model(), torch.randn(4, 3, 20, 16)
    classes = torch.tensor([2, 0, 1, 1])
    feature_map = model[0](x).detach()
    weights = model[1][-1].weight.detach()[classes] / feature_map[0, 0].numel()
    expected = torch.einsum("nk,nkhw->nhw", weights, feature_map)
    torch.testing.assert_close(grad_cam(model, x, classes, relu=False), expected)
    torch.testing.assert_close(grad_cam(model, x, classes), expected.relu())
    assert (expected < 0).any()


def test_equals_full_autograd_one_image_at_a_time():
    model = small_model(head=[nn.Linear(6, 6), nn.Tanh(), nn.BatchNorm1d(6)])
    x, classes = torch.randn(5, 3, 17, 17), [0, 1, 2, 1, 0]
    cam = grad_cam(model, x, classes)
    torch.testing.assert_close(cam, slow_cam(model, x, classes).relu(), rtol=1e-4, atol=1e-7)
    assert cam.max() > 0


def test_batch_order_and_size_do_not_matter():
    model, x = timm_model("test_resnet"), torch.randn(6, 3, 64, 64)
    whole, order = grad_cam(model, x), torch.randperm(6)
    torch.testing.assert_close(grad_cam(model, x[order]), whole[order])
    single = torch.cat([grad_cam(model, image[None]) for image in x])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-6)


def test_the_default_class_is_the_predicted_one():
    model, x = small_model(), torch.randn(8, 3, 20, 20)
    with torch.no_grad():
        model[1][-1].bias -= model(x).mean(0)
    predicted = model(x).argmax(1)
    assert len(predicted.unique()) > 1
    torch.testing.assert_close(grad_cam(model, x), grad_cam(model, x, predicted))


def test_one_class_for_all_equals_that_class_for_each():
    model, x = small_model(), torch.randn(3, 3, 20, 20)
    expected = grad_cam(model, x, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(grad_cam(model, x, 1), expected)
    torch.testing.assert_close(grad_cam(model, x, (1, 1, 1)), expected)


def test_result_is_plain_float32_of_the_map_size():
    class Marked(torch.Tensor):
        pass

    model, x = small_model().to(torch.bfloat16), torch.randn(2, 3, 21, 13).bfloat16()
    cam = grad_cam(model, x.as_subclass(Marked), torch.tensor([0, 1]).as_subclass(Marked))
    assert type(cam) is torch.Tensor
    assert cam.dtype == torch.float32
    assert not cam.requires_grad
    assert cam.shape == (2, *model[0](x).shape[2:])


@pytest.mark.parametrize("arch", ["resnet18", "mobilenetv3_small_050", "efficientnet_b0"])
def test_agrees_with_the_published_package(arch):
    published = pytest.importorskip("pytorch_grad_cam", reason="package grad-cam is not installed")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x, classes = timm_model(arch), torch.randn(3, 3, 96, 96), [3, 0, 1]
    ours = grad_cam(model, x, classes)
    with published.GradCAM(model, [model[0]]) as cam:
        theirs = torch.from_numpy(cam(x, [ClassifierOutputTarget(c) for c in classes]))
    large = nn.functional.interpolate(ours[None], 96, mode="bilinear")[0]
    for a, b in zip(large, theirs, strict=True):
        assert b.max() > 0.99  # the package scales each map to 0..1: an empty one would be all 0
        assert correlation(a, b) > 0.99


# -- layers inside the network --------------------------------------------------------------------


def test_the_body_as_layer_equals_the_default():
    model, x = small_model(), torch.randn(3, 3, 20, 20)
    torch.testing.assert_close(grad_cam(model, x, 1, layer=model[0]), grad_cam(model, x, 1))


def test_a_layer_inside_the_body_equals_full_autograd():
    model, x, classes = small_model(), torch.randn(4, 3, 21, 21), [0, 1, 2, 2]
    as_split = nn.Sequential(model[0][:2], nn.Sequential(*model[0][2:], model[1]))
    expected = slow_cam(as_split, x, classes).relu()
    cam = grad_cam(model, x, classes, layer=model[0][1])  # an in-place ReLU follows it
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-7)
    assert cam.max() > 0


@pytest.mark.parametrize(
    ("arch", "size", "n_prefix"),
    [("test_vit", 160, 1), ("test_vit2", 64, 1), ("test_vit3", 160, 0)],
)
def test_tokens_become_the_patch_grid(arch, size, n_prefix):
    net = timm.create_model(arch, num_classes=3, img_size=size).eval()
    x, layer = torch.randn(2, 3, size, size), net.blocks[-1].norm1
    seen = []
    with torch.enable_grad():
        handle = layer.register_forward_hook(lambda m, i, o: seen.append(o) or o.retain_grad())
        net(x)[:, 2].sum().backward()
        handle.remove()
    tokens, grads = (t[:, net.num_prefix_tokens :] for t in (seen[0], seen[0].grad))
    side = size // 16
    expected = torch.einsum("nk,nlk->nl", grads.mean(1), tokens.detach()).relu()
    cam = grad_cam(net, x, 2, layer=layer)
    assert cam.max() > 0
    torch.testing.assert_close(cam, expected.view(2, side, side), rtol=1e-3, atol=1e-7)


def test_networks_without_class_token_lose_no_token():
    net = timm.create_model(
        "test_vit", num_classes=3, img_size=64, class_token=False, global_pool="avg"
    )
    assert grad_cam(net, torch.randn(1, 3, 64, 64), layer=net.blocks[-1]).shape == (1, 4, 4)


def test_a_class_token_is_found_where_the_network_does_not_declare_it():
    class Tokens(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return torch.cat([tokens[:, :1] * 0 + 9, tokens], 1)

    class Patches(nn.Module):
        def forward(self, tokens):
            return tokens[:, 1:].mean(1)

    model, x = small_model(), torch.randn(2, 3, 24, 24)
    with_token = nn.Sequential(model[0], Tokens(), Patches(), model[1][-1])
    expected = grad_cam(model, x, 1)
    torch.testing.assert_close(grad_cam(with_token, x, 1, layer=with_token[1]), expected)


def test_tokens_follow_the_proportions_of_the_image():
    net = timm.create_model("test_vit", num_classes=3, img_size=(64, 128)).eval()
    assert grad_cam(net, torch.randn(1, 3, 64, 128), layer=net.blocks[-1]).shape == (1, 4, 8)


def test_channels_last_maps_are_turned():
    class Last(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    class First(nn.Module):
        def forward(self, x):
            return x.permute(0, 3, 1, 2)

    model, x = small_model(), torch.randn(2, 3, 24, 24)
    turned = nn.Sequential(nn.Sequential(model[0], Last(), First()), model[1])
    torch.testing.assert_close(grad_cam(turned, x, 1, layer=turned[0][1]), grad_cam(model, x, 1))


# -- the caller's objects -------------------------------------------------------------------------


@contextlib.contextmanager
def found_again(model):
    """Assert that modes, gradients, requires_grad, hooks, buffers and RNG are as they were."""

    def state():
        return (
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        )

    before, rng = state(), torch.get_rng_state()
    grads = [p.grad for p in model.parameters()]
    values = {k: v.clone() for k, v in model.state_dict().items()}
    grad_mode = torch.is_grad_enabled()
    yield
    assert state() == before
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, values[k]) for k, v in model.state_dict().items())
    assert torch.is_grad_enabled() == grad_mode


@pytest.mark.parametrize("inside", [False, True], ids=["body", "layer"])
def test_modes_gradients_hooks_and_rng_are_left_as_found(inside):
    model, x = small_model(head=[nn.Dropout(0.5)]), torch.randn(3, 3, 20, 20)
    expected = grad_cam(model, x, 1)
    model.train()
    model[0][1].eval()  # a frozen norm in a network that trains
    model[0].requires_grad_(False)
    model[1][-1].weight.grad = torch.ones(3, 6)
    with found_again(model):
        cam = grad_cam(model, x, 1, layer=model[0] if inside else None)
    torch.testing.assert_close(cam, expected)
    assert model[1][-1].weight.grad.eq(1).all()


@pytest.mark.parametrize("inside", [False, True], ids=["body", "layer"])
def test_everything_is_left_as_found_after_an_error(inside):
    model, x = small_model(head=[nn.Dropout(0.5)]).train(), torch.randn(3, 3, 20, 20)
    with found_again(model), pytest.raises(InterpretationError):
        grad_cam(model, x, 7, layer=model[0] if inside else None)
    with found_again(model), pytest.raises(RuntimeError, match="channels"):
        grad_cam(model, x[:, :2], layer=model[0] if inside else None)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("inside", [False, True], ids=["body", "layer"])
def test_works_where_gradients_are_switched_off(context, inside):
    model, x = small_model(), torch.randn(2, 3, 20, 20)
    model = nn.Sequential(nn.Sequential(nn.ReLU(inplace=True), model[0]), model[1])
    expected = grad_cam(model, x.clone(), 1)
    with context():
        made_inside = x * 1
        cam = grad_cam(model, made_inside, 1, layer=model[0] if inside else None)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(cam, expected)


def test_a_head_may_begin_in_place():
    model, x = small_model(), torch.randn(2, 3, 20, 20)
    model = nn.Sequential(model[0], nn.Sequential(nn.ReLU(inplace=True), *model[1]))
    feature_map = model[0](x).detach()
    weights = model[1][-1].weight[[1, 1]].detach() / feature_map[0, 0].numel()
    slope = (feature_map > 0).float().mean((2, 3))
    expected = torch.einsum("nk,nk,nkhw->nhw", weights, slope, feature_map).relu()
    torch.testing.assert_close(grad_cam(model, x, 1), expected)


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Conv2d(3, 4, 3), "is a Conv2d"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "Sequential of 1 modules"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "head has no pool"),
        (
            nn.Sequential(nn.Flatten(), nn.Sequential(nn.AdaptiveAvgPool1d(3))),
            r"body gives shape \(1, 192\)",
        ),
    ],
)
def test_models_without_body_and_head_are_refused_in_fastai_words(model, found):
    with pytest.raises(InterpretationError, match=found) as caught:
        grad_cam(model, torch.zeros(1, 3, 8, 8))
    assert str(caught.value).startswith(
        "`heatmap=True` requires a model like `cnn_learner` produces."
    )
    assert "pass `layer=`" in str(caught.value)


@pytest.mark.parametrize(
    ("class_idx", "message"),
    [
        (3, "`class_idx` 3 does not exist: the model has 3 classes, 0 to 2"),
        (-1, "`class_idx` -1 does not exist"),
        ([0, 5], "`class_idx` 5 does not exist"),
        ([0, 1, 2], r"shape \(3,\); pass one integer, or one per image \(2\)"),
        (torch.tensor([0.0, 1.0]), "is torch.float32"),
        (torch.tensor([True, False]), "is torch.bool"),
    ],
)
def test_impossible_classes_are_refused(class_idx, message):
    with pytest.raises(InterpretationError, match=message):
        grad_cam(small_model(), torch.randn(2, 3, 20, 20), class_idx)


def test_a_single_image_without_batch_is_refused():
    with pytest.raises(InterpretationError, match=r"shape \(3, 20, 20\).*`x\[None\]`"):
        grad_cam(small_model(), torch.randn(3, 20, 20))


def test_outputs_that_are_no_logits_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.AvgPool2d(2)))
    with pytest.raises(InterpretationError, match=r"returns shape \(1, 4, 3, 3\).*class logits"):
        grad_cam(model, torch.randn(1, 3, 8, 8))


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("pick", "message"),
    [
        (lambda m: nn.Linear(2, 2), r"`layer` \(Linear\) is no module of `model`"),
        (lambda m: m[1][-1], r"\(Linear\) returns shape \(2, 3\), which is no map of images of 20"),
        (lambda m: m[1][2], r"\(Detached\) .* is no map|no gradient"),
    ],
)
def test_layers_without_a_map_are_refused(pick, message):
    model = small_model(head=[Detached()])
    with pytest.raises(InterpretationError, match=message):
        grad_cam(model, torch.randn(2, 3, 20, 20), layer=pick(model))


def test_a_head_without_gradient_is_refused():
    with pytest.raises(InterpretationError, match="do not depend on the feature map"):
        grad_cam(small_model(head=[Detached()]), torch.randn(2, 3, 20, 20))


def test_a_layer_that_runs_twice_is_refused():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), relu, relu), small_model()[1])
    with pytest.raises(InterpretationError, match=r"\(ReLU\) runs 2 times"):
        grad_cam(model, torch.randn(1, 3, 8, 8), layer=relu)


def test_a_layer_with_two_outputs_is_refused():
    model = nn.Sequential(Pair(), nn.Flatten())
    with pytest.raises(InterpretationError, match=r"\(Pair\) returns tuple"):
        grad_cam(model, torch.randn(1, 3, 8, 8), layer=model[0])


def test_a_map_that_could_be_either_layout_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(InterpretationError, match=r"\(1, 4, 4, 4\), which could be several maps"):
        grad_cam(model, x, layer=model[1])
    assert grad_cam(model, x, layer=model[0]).shape == (1, 8, 8)  # a convolution leaves no doubt


# -- every architecture family --------------------------------------------------------------------


@pytest.mark.parametrize("arch", timm.list_models("test_*"))
def test_every_family_the_factory_builds_is_explained(arch):
    model = create_cnn_model(arch, 3, pretrained=False, img_size=64).eval()
    x, classes = torch.randn(2, 3, 64, 64), [2, 0]
    expected = slow_cam(model, x, classes)
    assert expected.abs().amax((1, 2)).min() > 0
    for frozen in (False, True):
        model[0].requires_grad_(not frozen)
        cam = grad_cam(model, x, classes, relu=False)
        assert cam.shape == (2, *model[0](x).shape[2:])
        scale = expected.abs().max().item()
        torch.testing.assert_close(cam, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("arch", ["test_mambaout", "test_convnext", "test_vit", "test_resnet"])
def test_the_last_stage_of_a_body_is_a_layer_like_any(arch):
    """Channels-last maps and tokens are read as the maps they are."""
    model = create_cnn_model(arch, 3, pretrained=False, img_size=96).eval()
    net = next(m for m in model[0].modules() if hasattr(m, "feature_info"))
    stages = next(getattr(net, n) for n in ("stages", "blocks", "layer4") if hasattr(net, n))
    x = torch.randn(2, 3, 96, 96)
    assert grad_cam(model, x, 1, layer=stages[-1]).shape == grad_cam(model, x, 1).shape


# -- Grad-CAM++ -----------------------------------------------------------------------------------


def slow_plus_plus(feature_map, gradient):
    """Weights of Grad-CAM++ cell by cell, eq. 19 with derivatives of the exponential."""
    weights = torch.zeros(feature_map.shape[:2])
    for n, k in torch.cartesian_prod(*map(torch.arange, feature_map.shape[:2])).tolist():
        total = feature_map[n, k].sum()
        for g in gradient[n, k].flatten().tolist():
            denominator = 2 * g**2 + total.item() * g**3
            alpha = g**2 / denominator if denominator else 0.0
            weights[n, k] += alpha * max(g, 0.0)
    return weights


def test_plus_plus_is_its_definition_cell_by_cell():
    torch.manual_seed(3)
    model, x = small_model(head=(nn.Linear(6, 6), nn.Tanh())), torch.rand(2, 3, 24, 20)
    feature_map = model[0](x).detach().requires_grad_()
    logits = model[1](feature_map.clone())
    gradient = torch.autograd.grad(logits[:, 1].sum(), feature_map)[0]
    weights = slow_plus_plus(feature_map.detach(), gradient)
    expected = torch.einsum("nk,nkhw->nhw", weights, feature_map.detach()).relu()
    found = grad_cam(model, x, 1, plus_plus=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, grad_cam(model, x, 1))


def test_plus_plus_of_a_map_without_gradient_is_zero():
    model = nn.Sequential(nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    x = torch.rand(1, 2, 4, 4)
    model[1].append(nn.Linear(2, 2))
    nn.init.zeros_(model[1][2].weight)
    assert grad_cam(model, x, 0, plus_plus=True).abs().max() == 0


# -- guided backpropagation -----------------------------------------------------------------------


def test_guided_backprop_is_the_chain_by_hand():
    torch.manual_seed(0)
    first, second = nn.Linear(12, 5), nn.Linear(5, 3)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(inplace=True), second).eval()
    x = torch.randn(4, 3, 2, 2)
    hidden = x.flatten(1) @ first.weight.T + first.bias
    back = second.weight[[0, 2, 1, 1]].clamp_min(0) * (hidden > 0)
    expected = (back @ first.weight).view_as(x)
    torch.testing.assert_close(guided_backprop(model, x, [0, 2, 1, 1]).detach(), expected)


def test_guided_backprop_leaves_the_network_as_it_was():
    model, x = small_model().train(), torch.rand(1, 3, 24, 24)
    guided_backprop(model, x, 0)
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert not x.requires_grad


def test_guided_backprop_of_a_network_without_activations_is_the_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(2, 3, 2, 2)
    expected = model[1].weight[[1, 1]].view_as(x)
    torch.testing.assert_close(guided_backprop(model, x, 1), expected)


@pytest.mark.parametrize("arch", ["mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_guided_backprop_runs_through_other_activations(arch):
    size = 224 if arch.startswith("vit") else 64
    model = timm.create_model(arch, num_classes=3).eval()
    found = guided_backprop(model, torch.rand(1, 3, size, size), 2)
    assert found.shape == (1, 3, size, size)
    assert found.isfinite().all()
    assert found.abs().max() > 0
