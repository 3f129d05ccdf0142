"""The recipe equals fastai's validation transforms, and travels as data."""

import io
import json
import math

import numpy as np
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.vision.augment import FlipItem, Resize
from fastai.vision.core import PILImage, PILImageBW, TensorImage
from PIL import Image, ImageDraw

from learnkit.data.dataset import ImageDataset
from learnkit.data.geometry import Resizing, centred_box
from learnkit.data.preprocess import Preprocessing
from learnkit.errors import DataError, ImageReadError, InputSizeError
from learnkit.learner.transforms import preprocessing_of

SIZES = [(5, 6), (7, 5), (33, 64), (64, 33), (50, 50), (131, 29)]
TARGETS = [32, (17, 31), (40, 13)]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(height, width, channels=3):
    pixels = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, channels)
    )
    return Image.fromarray(pixels.astype("uint8").squeeze())


@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_geometry_equals_fastai_resize_pixel_for_pixel(method, target, size):
    image = noise(*size)
    for pad_mode in ("zeros", "border", "reflection") if method == "pad" else ("zeros",):
        ours = Preprocessing(target, method=method, pad_mode=pad_mode).resize(image)
        fastai = Resize(target, method=method, pad_mode=pad_mode)(PILImage(image), split_idx=1)
        assert np.array_equal(np.asarray(ours), np.asarray(fastai))


def test_a_cut_thinner_than_a_pixel_keeps_one_where_fastai_returns_black():
    image = noise(3, 2)
    fastai = Resize((40, 13))(PILImage(image), split_idx=1)
    assert not np.asarray(fastai).any()
    ours = Preprocessing((40, 13)).resize(image)
    expected = image.crop((0, 0, 1, 3)).resize((13, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_grey_geometry_equals_fastai():
    image = noise(41, 60, 1)
    for method in ("crop", "squish", "pad"):
        ours = Preprocessing((20, 24), channels=1, method=method).resize(image)
        fastai = Resize((20, 24), method=method, pad_mode="zeros")(PILImageBW(image), split_idx=1)
        assert np.array_equal(np.asarray(ours), np.asarray(fastai))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_pillows(interpolation):
    image = noise(40, 40)
    expected = image.resize((16, 16), getattr(Image.Resampling, interpolation.upper()))
    ours = Preprocessing(16, interpolation=interpolation).resize(image)
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


@pytest.mark.parametrize("method", ["crop", "squish"])
def test_crop_share_keeps_the_centre(method):
    image = noise(40, 40)
    expected = image.crop((10, 10, 30, 30)).resize((8, 8), Image.Resampling.BILINEAR)
    ours = Preprocessing(8, method=method, crop=0.5).resize(image)
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1)])
@pytest.mark.parametrize("method", ["crop", "squish"])
def test_extreme_shapes_give_the_declared_size(size, method):
    tensor = Preprocessing((48, 49), method=method).load(np.full((*size, 3), 77, "uint8"))
    assert tensor.shape == (3, 48, 49)
    assert (tensor == 77).all()


def test_padding_a_line_to_a_square_is_refused_before_it_allocates():
    with pytest.raises(ImageReadError, match="20000 x 1 would be padded to 20000 x 20000"):
        Preprocessing(48, method="pad").load(np.zeros((1, 20_000, 3), "uint8"))


def test_load_is_a_contiguous_copy_in_channel_first_order():
    image = noise(8, 8)
    tensor = Preprocessing(8).load(image)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(image))
    before = np.asarray(image).copy()
    tensor.zero_()
    assert np.array_equal(np.asarray(image), before)


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_are_what_is_loaded_with_the_channels_last(channels):
    recipe = Preprocessing((5, 7), channels=channels)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype="uint8"))
    pixels = recipe.pixels(image)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, recipe.load(image).permute(1, 2, 0))


def test_normalize_equals_fastai_to_1e_6():
    batch = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8)
    mean, std = IMAGENET.values()
    fastai = Normalize.from_stats(mean, std, cuda=False)(IntToFloatTensor()(TensorImage(batch)))
    ours = Preprocessing((9, 7), **IMAGENET).normalize(batch)
    assert type(ours) is torch.Tensor
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, fastai.as_subclass(torch.Tensor), atol=1e-6, rtol=0)


def test_normalize_of_floats_and_of_bytes_agree_and_change_nothing():
    recipe = Preprocessing(6, **IMAGENET)
    batch = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    floats = batch / 255
    kept = floats.clone()
    assert torch.equal(recipe.normalize(batch), recipe.normalize(floats))
    assert torch.equal(floats, kept)
    assert type(recipe.normalize(TensorImage(floats))) is torch.Tensor


def test_normalize_without_statistics_is_division_by_255():
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(Preprocessing(16, channels=1).normalize(batch), batch / 255)


def test_call_is_load_then_normalize():
    recipe = Preprocessing(12, **IMAGENET)
    image = noise(20, 30)
    one = recipe(image)
    assert torch.equal(one, recipe.normalize(recipe.load(image)[None])[0])
    expected = torch.tensor(np.asarray(recipe.resize(image)) / 255).permute(2, 0, 1)
    expected = (expected - torch.tensor(IMAGENET["mean"]).view(3, 1, 1)) / torch.tensor(
        IMAGENET["std"]
    ).view(3, 1, 1)
    torch.testing.assert_close(one, expected.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4),
            InputSizeError,
            r"\(2, 1, 4, 4\); it must be \(N, 3, H, W\)",
        ),
        (torch.zeros(4, 4), InputSizeError, r"shape \(4, 4\)"),
        (torch.full((1, 3, 2, 2), 200.0), DataError, r"floats in 200..200; .* divide by 255"),
        (torch.full((1, 3, 2, 2), float("nan")), DataError, "must lie in 0..1"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.int64), DataError, "torch.int64; it must be uint8"),
    ],
)
def test_normalize_refuses_rather_than_guesses(batch, error, message):
    with pytest.raises(error, match=message):
        Preprocessing(4).normalize(batch)


RECIPES = [
    Preprocessing(224),
    Preprocessing((120, 160), mean=torch.tensor([0.5] * 3), std=[0.25, 0.5, 1]),
    Preprocessing(32, channels=1, mean=0.1, std=(0.3,), method="pad", pad_mode="reflection"),
    Preprocessing(64, crop=0.875, interpolation="bicubic", bit_depth=12, background=[1, 2, 3]),
    Preprocessing(8, method="squish", exif_transpose=False, max_pixels=1000),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_travels_as_strict_json(recipe):
    text = json.dumps(recipe.to_dict(), allow_nan=False)
    back = Preprocessing.from_dict(json.loads(text))
    assert back == recipe
    assert hash(back) == hash(recipe)
    assert set(recipe.to_dict()) == set(Preprocessing.__dataclass_fields__)


def test_recipes_that_differ_in_any_field_differ():
    base = Preprocessing(64, **IMAGENET)
    changes = {"size": 65, "method": "squish", "crop": 0.9, "interpolation": "box"}
    changes |= {"bit_depth": 10, "background": 0, "exif_transpose": False, "pad_mode": "border"}
    changes |= {"max_pixels": 9, "mean": (0, 0, 0), "std": (1, 1, 1)}
    for name, value in changes.items():
        assert base.replace(**{name: value}) != base


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, r"`size` is \(0, 0\); it must be \(height, width\)"),
        ({"size": True}, "`size` is"),
        ({"size": "224"}, "`size` is '224'"),
        ({"size": [8, 8, 3]}, r"`size` is \(8, 8, 3\)"),
        ({"size": 10**9}, "1..16384"),
        ({"channels": 17}, r"`channels` is 17; it must be 3 \(RGB\), 1 \(grey\)"),
        ({"mean": [0.5] * 3}, "`mean` and `std` go together"),
        ({"mean": [0.5], "std": [0.5]}, "`mean` has 1 value for 3 channels"),
        ({"mean": [0.5] * 3, "std": [1, 1, 0]}, "every value must be above 0"),
        ({"mean": [float("nan")] * 3, "std": [1] * 3}, "every value must be finite"),
        ({"mean": "x", "std": [1] * 3}, "one number per channel"),
        ({"mean": [10**400] * 3, "std": [1] * 3}, "one number per channel"),
        ({"method": "stretch"}, "`method` is 'stretch'; it must be one of"),
        ({"interpolation": 2}, "`interpolation` is 2; it must be one of"),
        ({"pad_mode": "mirror"}, "`pad_mode` is 'mirror'"),
        ({"exif_transpose": 1}, "`exif_transpose` is 1"),
        ({"crop": 0}, r"`crop` is 0; it must be a share in \(0, 1\]"),
        ({"crop": float("nan")}, "`crop` is nan"),
        ({"crop": 0.9, "method": "pad"}, "which cuts nothing"),
        ({"bit_depth": 4}, "`bit_depth` is 4"),
        ({"background": 300}, "`background` is 300; it must be 0..255 or three"),
        ({"max_pixels": 0}, "`max_pixels` is 0; it must be a positive integer"),
        ({"antialias": True}, r"unknown fields \['antialias'\]"),
    ],
)
def test_from_dict_is_strict(fields, message):
    with pytest.raises(DataError, match=message):
        Preprocessing.from_dict({"size": 224, **fields})


@pytest.mark.parametrize("fields", [None, [], {"channels": 3}])
def test_from_dict_needs_a_dictionary_with_size(fields):
    with pytest.raises(DataError, match="must be a dictionary with `size`"):
        Preprocessing.from_dict(fields)


def jpeg(image, quality=90, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def photograph(height, width, seed=0):
    """Blobs of all sizes, as scenes have them: an octave more, half the contrast."""
    rng, total = np.random.default_rng(seed), 0
    for octave in range(2, 9):
        side = 2**octave
        small = rng.integers(0, 256, (side * 3 // 4 + 1, side + 1, 3)).astype("uint8")
        big = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        total = total + np.asarray(big, dtype=float) / 2 ** (octave - 1)
    return Image.fromarray(((total - total.min()) * (255 / np.ptp(total))).astype("uint8"))


class TestDraft:
    """JPEGs decoded smaller by libjpeg: nearly the same pixels, exactly the same cut."""

    def test_recipes_without_the_field_decode_in_full_as_they_did(self):
        fields = Preprocessing(32).to_dict()
        del fields["draft"]
        assert Preprocessing.from_dict(fields) == Preprocessing(32)
        raw = jpeg(photograph(600, 800))
        expected = Preprocessing(32).resize(Image.open(io.BytesIO(raw)))
        assert np.array_equal(np.asarray(Preprocessing(32).read(raw)), np.asarray(expected))

    @pytest.mark.parametrize("quality", [95, 75])
    @pytest.mark.parametrize(
        ("method", "size"), [("crop", 64), ("squish", (48, 80)), ("pad", 56), ("crop", (60, 32))]
    )
    def test_photographs_stay_within_a_few_grey_levels(self, method, size, quality):
        raw = jpeg(photograph(960, 1280), quality)
        full = Preprocessing(size, method=method)
        draft = full.replace(draft=True)
        assert draft.draft_factor((1280, 960)) >= 2
        difference = np.abs(draft.pixels(raw).astype(int) - full.pixels(raw))
        assert 0 < difference.max() <= 5
        assert difference.mean() < 1

    @pytest.mark.parametrize("kind", ["noise", "coloured squares", "lines"])
    def test_what_no_camera_sees_stays_within_the_bound_that_is_stated(self, kind):
        rng = np.random.default_rng(1)
        image = noise(960, 1280)
        if kind == "coloured squares":
            squares = rng.integers(0, 2, (96, 128, 3)) * 255
            image = Image.fromarray(np.kron(squares, np.ones((10, 10, 1))).astype("uint8"))
        if kind == "lines":
            image = Image.new("RGB", (1280, 960), "white")
            for _ in range(60):
                ends = [tuple(map(int, rng.integers(0, (1280, 960)))) for _ in range(2)]
                colour = tuple(map(int, rng.integers(0, 255, 3)))
                ImageDraw.Draw(image).line(ends, fill=colour, width=int(rng.integers(1, 4)))
        raw = jpeg(image, 75)
        for size in (160, 80, 40):  # at a half, a quarter, an eighth
            full = Preprocessing(size, method="squish")
            pixels = full.replace(draft=True).pixels(raw)
            assert np.abs(pixels.astype(int) - full.pixels(raw)).max() <= 25

    def test_the_cut_is_the_same_to_the_pixel(self):
        rng = np.random.default_rng(0)
        n_drafted = 0
        for _ in range(3000):
            width, height = (8 * int(n) for n in rng.integers(30, 600, 2))
            size = tuple(map(int, rng.integers(8, 300, 2)))
            method = str(rng.choice(["crop", "squish", "pad"]))
            crop = float(rng.choice([1, 0.875]))
            recipe = Preprocessing(size, method=method, crop=1 if method == "pad" else crop)
            factor = recipe.draft_factor((width, height))
            cut = [recipe.method, recipe.crop]
            box = centred_box((width, height), size[::-1], *cut)
            smaller = centred_box((width // factor, height // factor), size[::-1], *cut)
            assert tuple(side * factor for side in smaller) == box
            n_drafted += factor > 1
        assert n_drafted > 100

    @pytest.mark.parametrize(
        "recipe",
        [
            Preprocessing(64, method="keep"),
            Preprocessing(64, method="grid"),
            Preprocessing(64, interpolation="nearest"),
            Preprocessing(64, before=(Resizing(64, "keep"),)),
            Preprocessing(200),
            Preprocessing(8).replace(size=(8, 4000)),
        ],
        ids=str,
    )
    def test_where_it_would_be_seen_it_is_not_done(self, recipe):
        assert recipe.draft_factor((1280, 960)) == 1

    def test_images_turned_by_exif_are_drafted_upright(self):
        image = photograph(960, 1280)
        exif = Image.Exif()
        exif[0x0112] = 6
        raw = jpeg(image, exif=exif)
        full, draft = Preprocessing((44, 22)), Preprocessing((44, 22), draft=True)
        assert draft.draft_factor((960, 1280)) != draft.draft_factor((1280, 960))
        assert draft.read(raw).size == (22, 44)
        assert np.abs(draft.pixels(raw).astype(int) - full.pixels(raw)).max() <= 5

    def test_a_file_is_decoded_alike_from_path_bytes_and_file(self, tmp_path):
        raw = jpeg(photograph(960, 1280))
        (tmp_path / "a.jpg").write_bytes(raw)
        recipe = Preprocessing(64, draft=True)
        found = [recipe.pixels(one) for one in (tmp_path / "a.jpg", raw, io.BytesIO(raw))]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])

    def test_an_image_at_hand_is_left_as_it_is(self):
        image = Image.open(io.BytesIO(jpeg(photograph(960, 1280))))
        full, draft = Preprocessing(64), Preprocessing(64, draft=True)
        assert np.array_equal(draft.pixels(image), full.pixels(image))
        assert image.size == (1280, 960)

    def test_the_limit_of_pixels_is_that_of_the_file(self):
        raw = jpeg(photograph(960, 1280))
        with pytest.raises(ImageReadError, match="1280 x 960 = 1,228,800 pixels, over the limit"):
            Preprocessing(64, draft=True, max_pixels=1_000_000).read(raw)

    def test_loaders_draft_unless_images_are_augmented_in_their_own_size(self, tmp_path):
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            noise(20, 20).save(tmp_path / name)
        data = ImageDataset.from_folder(tmp_path).split(0.5, 0.5)
        assert preprocessing_of(data.dataloaders(16)).draft
        assert not preprocessing_of(data.dataloaders(16, draft=False)).draft
        assert not preprocessing_of(data.dataloaders(16, item_tfms=FlipItem())).draft
        recipe = Preprocessing(16, draft=True)
        loaders = data.dataloaders(preprocessing=recipe, item_tfms=FlipItem())
        assert not preprocessing_of(loaders).draft


class TestPerImage:
    """HALCON's all_channels and first_channel: contrast stretched image by image."""

    @staticmethod
    def by_loop(pixels, kind):
        """The rule, value by value."""
        found = np.zeros_like(pixels)
        for c in range(pixels.shape[2]):
            of = pixels[..., 0 if kind == "first_channel" else c].astype(float)
            low, high = of.min(), of.max()
            for y, x in np.ndindex(pixels.shape[:2]):
                share = 0.0 if high == low else (pixels[y, x, c] - low) / (high - low)
                found[y, x, c] = math.floor(min(max(share, 0), 1) * 255 + 0.5)
        return found

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("kind", ["all_channels", "first_channel"])
    def test_equals_the_rule_value_by_value(self, kind, channels):
        rng = np.random.default_rng(3)
        levels = rng.integers(40, [90, 200, 60][:channels], (9, 7, channels)).astype("uint8")
        levels[..., -1] //= 2
        image = levels.squeeze()
        recipe = Preprocessing((9, 7), channels=channels, per_image=kind)
        assert np.array_equal(recipe.pixels(image), self.by_loop(levels, kind))

    @pytest.mark.parametrize("kind", ["all_channels", "first_channel"])
    def test_brightness_and_contrast_of_the_light_do_not_matter(self, kind):
        plain = np.asarray(noise(20, 20)) // 3
        recipe = Preprocessing(20, per_image=kind)
        brighter = recipe.pixels(plain + 80)
        assert np.array_equal(brighter, recipe.pixels(plain))
        assert np.abs(recipe.pixels(plain * 2).astype(int) - brighter).max() <= 1

    def test_a_plain_image_becomes_black_and_a_full_one_stays(self):
        recipe = Preprocessing(8, per_image="all_channels")
        assert not recipe.pixels(np.full((8, 8, 3), 77, "uint8")).any()
        full = np.arange(256, dtype="uint8").reshape(16, 16)
        grey = Preprocessing(16, channels=1, per_image="first_channel")
        assert np.array_equal(grey.pixels(full)[..., 0], full)

    def test_it_comes_after_the_resize(self):
        image = photograph(60, 80)
        small = Preprocessing(16, method="squish").pixels(image)
        recipe = Preprocessing(16, method="squish", per_image="all_channels")
        assert np.array_equal(recipe.pixels(image), self.by_loop(small, "all_channels"))
        assert recipe.pixels(image).min() == 0
        assert recipe.pixels(image).max() == 255

    def test_it_travels_and_recipes_of_before_have_none(self):
        recipe = Preprocessing(16, per_image="first_channel")
        assert Preprocessing.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
        fields = Preprocessing(16).to_dict()
        del fields["per_image"]
        assert Preprocessing.from_dict(fields).per_image is None

    @pytest.mark.parametrize("kind", ["none", "true", 1, True])
    def test_another_kind_is_refused(self, kind):
        with pytest.raises(DataError, match=r"`per_image` is .*; it must be one of \('all_chan"):
            Preprocessing(16, per_image=kind)


@pytest.mark.parametrize("n_channels", [2, 4, 5, 16])
@pytest.mark.parametrize("method", ["crop", "squish", "pad", "keep", "grid"])
def test_each_of_many_channels_is_seen_as_a_grey_image_is(n_channels, method):
    rng = np.random.default_rng(n_channels)
    pixels = rng.integers(0, 256, (41, 50, n_channels)).astype("uint8")
    found = Preprocessing((16, 20), channels=n_channels, method=method).pixels(pixels)
    grey = Preprocessing((16, 20), channels=1, method=method)
    for place in range(n_channels):
        plane = grey.pixels(np.ascontiguousarray(pixels[..., place]))[..., 0]
        # the products of "grid" are rounded otherwise beside others
        difference = np.abs(found[..., place].astype(int) - plane)
        assert difference.max() <= (method == "grid")
        assert difference.mean() < 0.01
    deep = pixels.astype("uint16") * 257
    wide = Preprocessing((16, 20), channels=n_channels, method=method)
    assert np.array_equal(wide.pixels(deep), found)
    tensor = torch.from_numpy(np.moveaxis(pixels, 2, 0).copy())
    assert np.array_equal(wide.pixels(tensor), found)


@pytest.mark.parametrize("n_channels", [0, 17, True, 2.0])
def test_channels_are_a_number_from_1_to_16(n_channels):
    with pytest.raises(DataError, match="or another whole number up to 16"):
        Preprocessing(16, channels=n_channels)


def test_an_image_of_other_channels_than_asked_for_is_named():
    with pytest.raises(ImageReadError, match=r"has shape \(8, 8, 3\), and `channels` is 5"):
        Preprocessing(8, channels=5).pixels(np.zeros((8, 8, 3), "uint8"))
    with pytest.raises(ImageReadError, match="values of type float32, whose range is not known"):
        Preprocessing(8, channels=5).pixels(np.zeros((8, 8, 5), "float32"))
