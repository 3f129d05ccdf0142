"""Continual learning and out-of-distribution detection: HALCON's three operators."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from learnkit.data.labels import nfc
from learnkit.errors import ContinualNotInitializedError, OodLockedError, OptimizeError
from learnkit.halcon.dataset import samples_of
from learnkit.halcon.handles import HDlModel, checked_model
from learnkit.halcon.model import ids_of
from learnkit.halcon.operators import (
    as_bool,
    as_dict,
    as_tuple,
    checked_params,
    is_nothing,
    operator,
)
from learnkit.halcon.preprocess import images_for


@operator()
def init_dl_continual_learning(
    dlmodel_handle: Any, dldataset: Any = (), gen_param: Any = ()
) -> None:
    """Put a model into the continual state, in place.

    Differs from HALCON: with images it is exactly what `extend_dl_continual_learning` of an empty
    model makes of them, to the bit; a threshold is there from two images of a class on.

    Args:
        dlmodel_handle: pretrained or trained.
        dldataset: preprocessed and split; [] for a model that knows nothing yet.
        gen_param: 'reset_class_information' ('false'): allow classes the model knows to be dropped,
            as is needed without a dataset.

    Raises:
        HOperatorError: 7972, it is there already; 7925, classes would be lost; 7970, the network
            gives no features; 7975, the images do not suffice; 7917, an optimised model.
    """
    model = checked_model(dlmodel_handle)
    params = checked_params(
        gen_param, {"reset_class_information": "false"}, "init_dl_continual_learning"
    )
    reset = as_bool(params["reset_class_information"], "reset_class_information")
    if model.is_converted:
        raise OptimizeError(
            "an optimised model cannot be put into the continual state; its model can"
        )
    data = None if is_nothing(dldataset) else images_for(model, dldataset)
    if model.made is None and data is None:
        model.starts_empty()
        return
    if model.made is None and not model.names:
        assert data is not None
        model.names, model.ids = data.classes, data.class_ids
    model.learner.init_continual(data, reset_class_information=reset)


@operator()
def extend_dl_continual_learning(
    dlmodel_handle: Any, dldataset: MutableMapping[str, Any], gen_param: Any = ()
) -> None:
    """Learn new classes, or more of known ones, from new images alone, in place.

    The ids of the dataset become those of the model, by the names of the classes.

    Differs from HALCON: extending by two halves is extending by the whole, to the bit; after an
    error model and dataset are as before; no file is written anew, since samples are labelled by
    their dataset.

    Args:
        dlmodel_handle: in the continual state; optimised ones learn, too.
        dldataset: preprocessed, with new images; its 'class_ids' and 'image_label_id' are changed
            after success.
        gen_param: [] or {}.

    Raises:
        HOperatorError: 7971, the model is not in the continual state; 7925, the dataset is wrong;
            7975, its images do not suffice.
    """
    model = checked_model(dlmodel_handle)
    checked_params(gen_param, {}, "extend_dl_continual_learning")
    if not model.continual:
        raise ContinualNotInitializedError(
            "the model is not in the continual state; call init_dl_continual_learning first"
        )
    data = images_for(model, dldataset)
    (model.learner if model.converted is None else model.converted).extend(data)
    # last: after an error the dataset is as it was
    _take_over_ids(model, dldataset)


def _take_over_ids(model: HDlModel, dldataset: MutableMapping[str, Any]) -> None:
    """Write the model's ids into a dataset."""
    ids = ids_of(model)
    # spelled as the model has them: macOS decomposes names of folders, others compose them
    names = [nfc(name) for name in as_tuple(dldataset["class_names"])]
    old = as_tuple(dldataset["class_ids"])
    new = {before: ids[name] for before, name in zip(old, names, strict=True) if name in ids}
    for sample in samples_of(dldataset):
        labels = as_tuple(sample["image_label_id"])
        sample["image_label_id"] = [new.get(label, label) for label in labels]
    dldataset["class_ids"] = [new.get(one, one) for one in old]


@operator()
def fit_dl_out_of_distribution(dlmodel_handle: Any, dldataset: Any, gen_param: Any = ()) -> None:
    """Let a trained model tell images of no class: fit its scores and their threshold, in place.

    Args:
        dlmodel_handle: trained, not in the continual state, which has this already.
        dldataset: that of the training, preprocessed and split.
        gen_param: learnkit's own: 'false_alarm_rate' (.05), 'score' and 'guarantee', see
            `ImageLearner.fit_ood`.

    Raises:
        HOperatorError: 7985, another type of model; 7986, too few images; 7988, the model is in the
            continual state; 7917, an optimised model.
    """
    model = checked_model(dlmodel_handle)
    defaults = {"false_alarm_rate": None, "score": None, "guarantee": None}
    params = checked_params(as_dict(gen_param), defaults, "fit_dl_out_of_distribution")
    settings = {name: value for name, value in params.items() if value is not None}
    if model.is_converted:
        raise OptimizeError("an optimised model is fixed; fit the model it was made from")
    if model.continual:
        raise OodLockedError("a model in the continual state tells images of no class already")
    data = images_for(model, dldataset)
    model.learner.fit_ood(data, **settings)
