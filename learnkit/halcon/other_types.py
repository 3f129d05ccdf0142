"""Operators for masks, anomalies and boxes: refused until learnkit has models of those types."""

from __future__ import annotations

from typing import Any, NoReturn

from learnkit.halcon.errors import H_ERR_DL_MODEL_OPERATOR_UNSUPPORTED, operator_error
from learnkit.halcon.operators import operator


def _refuse(name: str, kind: str) -> NoReturn:
    raise operator_error(
        H_ERR_DL_MODEL_OPERATOR_UNSUPPORTED,
        f"{name} is for {kind}, and learnkit classifies images; its datasets are read and written "
        "by learnkit.data, models of this type are not there yet",
    )


@operator("DLDataset")
def read_dl_dataset_segmentation(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for segmentation are not there yet."""
    _refuse("read_dl_dataset_segmentation", "segmentation")


@operator("DLDataset")
def read_dl_dataset_anomaly(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for anomaly detection are not there yet."""
    _refuse("read_dl_dataset_anomaly", "anomaly detection")


@operator("DLDataset")
def read_dl_dataset_from_coco(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for object detection are not there yet."""
    _refuse("read_dl_dataset_from_coco", "object detection")


@operator("DLTrainResult")
def train_dl_model_anomaly_dataset(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for anomaly detection are not there yet."""
    _refuse("train_dl_model_anomaly_dataset", "anomaly detection")


@operator("DLModelHandle")
def create_dl_model_detection(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for object detection are not there yet."""
    _refuse("create_dl_model_detection", "object detection")


@operator("AnomalySegmentationThreshold", "AnomalyClassificationThresholds")
def compute_dl_anomaly_thresholds(*args: Any, **kwargs: Any) -> NoReturn:
    """Error 7912: models for anomaly detection are not there yet."""
    _refuse("compute_dl_anomaly_thresholds", "anomaly detection")
