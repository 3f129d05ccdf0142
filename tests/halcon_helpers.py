"""A tiny pretrained network under one of HALCON's names, and a model of it."""

import learnkit.halcon as ha

NETWORK = "pretrained_dl_classifier_compact.hdl"
SIZE = [32, 32, 3]


def new_model(dataset, **params):
    """A pretrained model with the classes of the dataset."""
    model = ha.read_dl_model(NETWORK)
    ha.set_dl_model_param(model, "class_names", dataset["class_names"])
    ha.set_dl_model_param(model, "class_ids", dataset["class_ids"])
    ha.set_dl_model_param(model, "image_dimensions", SIZE)
    ha.set_dl_model_param(model, "batch_size", 6)
    for name, value in params.items():
        ha.set_dl_model_param(model, name, value)
    return model
