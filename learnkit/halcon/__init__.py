"""The names a HALCON user types: deep learning's operators and procedures as plain functions.

    import learnkit.halcon as ha  # was: import halcon as ha

Parameters stand in HALCON's order and bear the names of its Python binding; results have its keys.
Each function is a few lines over learnkit, and says what it does otherwise. Iconic inputs come
first; one output is returned as it is, several as a tuple in their documented order.
"""

from typing import NoReturn

from learnkit.halcon import errors
from learnkit.halcon.continual import (
    extend_dl_continual_learning,
    fit_dl_out_of_distribution,
    init_dl_continual_learning,
)
from learnkit.halcon.dataset import (
    find_dl_samples,
    read_dl_dataset_classification,
    set_system,
    split_dl_dataset,
)
from learnkit.halcon.device import (
    get_dl_device_param,
    get_dl_device_param_s,
    optimize_dl_model_for_inference,
    query_available_dl_devices,
    query_available_dl_devices_s,
    set_dl_device_param,
)
from learnkit.halcon.dictionaries import (
    as_python_dict,
    as_python_dict_s,
    copy_dict,
    create_dict,
    dict_to_json,
    dict_to_json_s,
    from_python_dict,
    get_dict_object,
    get_dict_param,
    get_dict_param_s,
    get_dict_tuple,
    get_dict_tuple_s,
    json_to_dict,
    json_to_dict_s,
    read_dict,
    remove_dict_key,
    set_dict_object,
    set_dict_tuple,
    set_dict_tuple_at,
    write_dict,
)
from learnkit.halcon.display import (
    dev_close_window_dict,
    dev_display_classification_evaluation,
    dev_display_dl_data,
    dev_display_dl_data_close_windows,
    dev_display_dl_data_tiled,
    dev_display_dl_interactive_confusion_matrix,
    dev_update_off,
    disp_continue_message,
    gen_dl_model_classification_heatmap,
    stop,
)
from learnkit.halcon.errors import HError, HOperatorError, HTupleConversionError
from learnkit.halcon.evaluation import (
    evaluate_dl_model,
    gen_confusion_matrix,
)
from learnkit.halcon.handles import HDlDevice, HDlModel
from learnkit.halcon.images import (
    get_image_size,
    himage_as_numpy_array,
    himage_from_numpy_array,
    read_image,
)
from learnkit.halcon.legacy import (
    apply_dl_classifier,
    clear_dl_classifier,
    clear_dl_classifier_result,
    clear_dl_classifier_train_result,
    deserialize_dl_classifier,
    get_dl_classifier_param,
    get_dl_classifier_result,
    get_dl_classifier_train_result,
    read_dl_classifier,
    serialize_dl_classifier,
    set_dl_classifier_param,
    train_dl_classifier_batch,
    write_dl_classifier,
)
from learnkit.halcon.model import (
    PRETRAINED,
    apply_dl_model,
    clear_dl_model,
    deserialize_dl_model,
    gen_dl_model_heatmap,
    gen_dl_model_heatmap_s,
    read_dl_model,
    serialize_dl_model,
    write_dl_model,
)
from learnkit.halcon.model_param import (
    get_dl_model_param,
    get_dl_model_param_s,
    set_dl_model_param,
)
from learnkit.halcon.operators import HDevProcedure, HDevProcedureCall
from learnkit.halcon.other_types import (
    compute_dl_anomaly_thresholds,
    create_dl_model_detection,
    read_dl_dataset_anomaly,
    read_dl_dataset_from_coco,
    read_dl_dataset_segmentation,
    train_dl_model_anomaly_dataset,
)
from learnkit.halcon.preprocess import (
    create_dl_preprocess_param,
    create_dl_preprocess_param_from_model,
    preprocess_dl_dataset,
    preprocess_dl_samples,
)
from learnkit.halcon.samples import (
    augment_dl_samples,
    gen_dl_samples,
    gen_dl_samples_from_images,
    read_dl_samples,
    write_dl_samples,
)
from learnkit.halcon.train_param import create_dl_train_param
from learnkit.halcon.training import (
    train_dl_model,
    train_dl_model_batch,
)

__all__ = [
    "PRETRAINED",
    "HDevProcedure",
    "HDevProcedureCall",
    "HDlDevice",
    "HDlModel",
    "HError",
    "HOperatorError",
    "HTupleConversionError",
    "apply_dl_classifier",
    "apply_dl_model",
    "as_python_dict",
    "as_python_dict_s",
    "augment_dl_samples",
    "clear_dl_classifier",
    "clear_dl_classifier_result",
    "clear_dl_classifier_train_result",
    "clear_dl_model",
    "compute_dl_anomaly_thresholds",
    "copy_dict",
    "create_dict",
    "create_dl_model_detection",
    "create_dl_preprocess_param",
    "create_dl_preprocess_param_from_model",
    "create_dl_train_param",
    "deserialize_dl_classifier",
    "deserialize_dl_model",
    "dev_close_window_dict",
    "dev_display_classification_evaluation",
    "dev_display_dl_data",
    "dev_display_dl_data_close_windows",
    "dev_display_dl_data_tiled",
    "dev_display_dl_interactive_confusion_matrix",
    "dev_update_off",
    "dict_to_json",
    "dict_to_json_s",
    "disp_continue_message",
    "errors",
    "evaluate_dl_model",
    "extend_dl_continual_learning",
    "find_dl_samples",
    "fit_dl_out_of_distribution",
    "from_python_dict",
    "gen_confusion_matrix",
    "gen_dl_model_classification_heatmap",
    "gen_dl_model_heatmap",
    "gen_dl_model_heatmap_s",
    "gen_dl_samples",
    "gen_dl_samples_from_images",
    "get_dict_object",
    "get_dict_param",
    "get_dict_param_s",
    "get_dict_tuple",
    "get_dict_tuple_s",
    "get_dl_classifier_param",
    "get_dl_classifier_result",
    "get_dl_classifier_train_result",
    "get_dl_device_param",
    "get_dl_device_param_s",
    "get_dl_model_param",
    "get_dl_model_param_s",
    "get_image_size",
    "himage_as_numpy_array",
    "himage_from_numpy_array",
    "init_dl_continual_learning",
    "json_to_dict",
    "json_to_dict_s",
    "optimize_dl_model_for_inference",
    "preprocess_dl_dataset",
    "preprocess_dl_samples",
    "query_available_dl_devices",
    "query_available_dl_devices_s",
    "read_dict",
    "read_dl_classifier",
    "read_dl_dataset_anomaly",
    "read_dl_dataset_classification",
    "read_dl_dataset_from_coco",
    "read_dl_dataset_segmentation",
    "read_dl_model",
    "read_dl_samples",
    "read_image",
    "remove_dict_key",
    "serialize_dl_classifier",
    "serialize_dl_model",
    "set_dict_object",
    "set_dict_tuple",
    "set_dict_tuple_at",
    "set_dl_classifier_param",
    "set_dl_device_param",
    "set_dl_model_param",
    "set_system",
    "split_dl_dataset",
    "stop",
    "train_dl_classifier_batch",
    "train_dl_model",
    "train_dl_model_anomaly_dataset",
    "train_dl_model_batch",
    "write_dict",
    "write_dl_classifier",
    "write_dl_model",
    "write_dl_samples",
]


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(
        f"learnkit.halcon has no {name!r}: it has HALCON's operators and procedures for deep "
        "learning alone; what else HALCON has stays with HALCON"
    )
