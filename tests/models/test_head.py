import pytest
import torch
from torch import nn

from learnkit.models.head import AdaptiveConcatPool2d, SigmoidRange, create_head, init_head


def kinds(head):
    return [type(layer).__name__ for layer in head]


V1 = ["AdaptiveConcatPool2d", "Flatten", "BatchNorm1d", "Dropout", "Linear", "ReLU"]
V1 += ["BatchNorm1d", "Dropout", "Linear"]


def test_default_layout_is_fastai_v1s_with_biases():
    head = create_head(8, n_out=3)
    assert kinds(head) == V1
    assert head[2].num_features == 16
    assert {"4.bias", "8.bias"} <= set(head.state_dict())
    assert [head[3].p, head[7].p] == [0.25, 0.5]
    assert (head[4].in_features, head[4].out_features, head[8].out_features) == (16, 512, 3)


def test_positional_and_nc_count_features_after_pooling():
    images = torch.rand(2, 3, 4, 4)
    for head in (create_head(3 * 2, 4), create_head(nf=3 * 2, nc=4), create_head(nf=3, n_out=4)):
        assert head[2].num_features == 6
        assert head(images).shape == (2, 4)
    assert create_head(3, 4, concat_pool=False)(images).shape == (2, 4)
    assert create_head(3, n_out=4, concat_pool=False)(images).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "length"),
    [({}, 9), ({"lin_first": True}, 8), ({"first_bn": False}, 8), ({"lin_ftrs": [7, 5]}, 13)],
)
def test_lengths_are_fastai_v2s(options, length):
    head = create_head(5, n_out=4, **options)
    assert len(head) == length
    assert head(torch.rand(2, 5, 3, 3)).shape == (2, 4)


def test_linear_first_puts_the_linear_layer_before_its_norm():
    assert kinds(create_head(5, n_out=4, lin_first=True)) == [
        *["AdaptiveConcatPool2d", "Flatten", "Dropout", "Linear", "ReLU"],
        *["BatchNorm1d", "Dropout", "Linear"],
    ]


def test_plain_classifier_is_the_mean_times_a_matrix():
    head = create_head(6, n_out=2, lin_ftrs=[], ps=0, concat_pool=False, first_bn=False)
    assert kinds(head) == ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    x = torch.rand(3, 6, 5, 4)
    expected = x.mean((2, 3)) @ head[2].weight.T + head[2].bias
    assert torch.allclose(head(x), expected, atol=1e-6)


def test_any_sequence_of_widths_is_taken_and_left_alone():
    widths, dropouts = [32, 16], [0.1, 0.2, 0.3]
    head = create_head(4, n_out=2, lin_ftrs=widths, ps=dropouts)
    assert (widths, dropouts) == ([32, 16], [0.1, 0.2, 0.3])
    assert [layer.p for layer in head if isinstance(layer, nn.Dropout)] == dropouts
    assert kinds(create_head(4, n_out=2, lin_ftrs=(32, 16))) == kinds(head)


@pytest.mark.parametrize("ps", [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4], []])
def test_wrong_number_of_dropouts_is_refused_instead_of_losing_layers(ps):
    with pytest.raises(ValueError, match=rf"`ps` has {len(ps)} values for 3 linear layers"):
        create_head(4, n_out=2, lin_ftrs=[32, 16], ps=ps)


@pytest.mark.parametrize("ps", [1.0, -0.1, [0.5, 2]])
def test_dropout_outside_zero_to_one_is_refused(ps):
    with pytest.raises(ValueError, match=r"dropout probabilities lie in \[0, 1\)"):
        create_head(4, n_out=2, ps=ps)


def test_zero_dropout_leaves_no_module():
    assert "Dropout" not in kinds(create_head(4, n_out=2, ps=0.0))
    assert kinds(create_head(4, n_out=2, ps=[0, 0.5])).count("Dropout") == 1


@pytest.mark.parametrize("counts", [{}, {"nc": 2, "n_out": 2}])
def test_number_of_classes_is_given_exactly_once(counts):
    with pytest.raises(ValueError, match="give exactly one of them"):
        create_head(4, **counts)


@pytest.mark.parametrize(("nf", "n_out"), [(0, 2), (4, 0)])
def test_sizes_below_one_are_refused(nf, n_out):
    with pytest.raises(ValueError, match="must be at least 1"):
        create_head(nf, n_out=n_out)


def test_options_without_pool_with_final_norm_and_range():
    head = create_head(4, n_out=2, pool=False, bn_final=True, y_range=(-1, 3), lin_bias=False)
    assert kinds(head)[0] == "BatchNorm1d"
    assert head[-2].momentum == 0.01
    assert not any(isinstance(m, nn.Linear) and m.bias is not None for m in head)
    out = head(torch.randn(50, 4) * 100)
    assert out.min() >= -1
    assert out.max() <= 3


def test_sigmoid_range_is_the_logistic_curve_stretched():
    assert torch.allclose(SigmoidRange(2, 4)(torch.zeros(3)), torch.full((3,), 3.0))


def test_concat_pool_gives_maxima_then_means():
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert AdaptiveConcatPool2d()(x).flatten().tolist() == [3, 7, 1.5, 5.5]


def test_init_sets_weights_and_biases_but_no_norms_and_nothing_frozen():
    head = create_head(4, n_out=2)
    nn.init.constant_(head[2].bias, 7.0)
    head[4].requires_grad_(False)
    frozen = head[4].weight.clone()
    init_head(head, nn.init.zeros_)
    assert head[8].weight.abs().sum() == head[8].bias.abs().sum() == 0
    assert (head[2].bias == 7).all()
    assert torch.equal(head[4].weight, frozen)


def test_no_init_leaves_torchs_own():
    head = create_head(4, n_out=2)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    init_head(head, None)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
