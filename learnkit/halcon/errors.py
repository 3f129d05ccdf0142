"""HALCON's error numbers, by its names, and the two exceptions that carry them."""

from __future__ import annotations

from typing import Any

from learnkit.errors import LearnkitError

H_ERR_WIPT1 = 1201  # a parameter of a wrong type; the next numbers are for the next parameters
H_ERR_DL_FILE_READ = 7780
H_ERR_DL_FILE_WRITE = 7781
H_ERR_DL_FILE_WRONG_VERSION = 7782
H_ERR_DL_INPUTS_MISSING = 7783
H_ERR_DL_INPUT_WRONG_BS = 7784
H_ERR_DL_INVALID_NAME = 7785
H_ERR_DL_INVALID_OUTPUT = 7787
H_ERR_DL_PARAM_NOT_AVAILABLE = 7788
H_ERR_DL_INPUT_WRONG_LENGTH = 7789
H_ERR_DL_INPUT_WRONG_TYPE = 7790
H_ERR_DL_INPUT_WRONG_VALUES = 7791
H_ERR_DL_CLASS_IDS_NOT_UNIQUE = 7792
H_ERR_DL_CLASS_IDS_INVALID = 7793
H_ERR_DL_INPUT_WRONG_BS_WITH_MULTIPLIER = 7800
H_ERR_DL_CLASS_IDS_MISSING = 7802
H_ERR_DL_HEATMAP_UNSUPPORTED_RUNTIME = 7850
H_ERR_DL_HEATMAP_UNSUPPORTED_MODEL_TYPE = 7851
H_ERR_DL_HEATMAP_UNSUPPORTED_METHOD = 7852
H_ERR_DL_HEATMAP_WRONG_TARGET_CLASS_ID = 7853
H_ERR_DL_MODEL_APPLY_NO_DEF_OUTPUTS = 7910
H_ERR_DL_MODEL_UNSUPPORTED_GENPARAM = 7911
H_ERR_DL_MODEL_OPERATOR_UNSUPPORTED = 7912
H_ERR_DL_MODEL_UNSUPPORTED_GENVALUE = 7914
H_ERR_DL_MODEL_INVALID_NUM_SAMPLES = 7915
H_ERR_DL_MODEL_CONVERTED_PARAM = 7916
H_ERR_DL_MODEL_CONVERTED_UNSUPPORTED = 7917
H_ERR_DL_INVALID_DATASET = 7925
H_ERR_DL_INVALID_SAMPLE_INDEX = 7926
H_ERR_DL_DEVICE_UNSUPPORTED_PRECISION = 7960
H_ERR_DL_CONTINUAL_LEARNING_UNSUPPORTED_MODEL = 7970
H_ERR_DL_CONTINUAL_LEARNING_MODEL_NOT_INITIALIZED = 7971
H_ERR_DL_CONTINUAL_LEARNING_MODEL_ALREADY_INITIALIZED = 7972
H_ERR_DL_CONTINUAL_LEARNING_INFERENCE_FAILED = 7973
H_ERR_DL_CONTINUAL_LEARNING_INVALID = 7974
H_ERR_DL_CONTINUAL_LEARNING_INSUFFICIENT_SAMPLE_DIVERSITY = 7975
H_ERR_DL_OOD_UNSUPPORTED_MODEL_TYPE = 7985
H_ERR_DL_OOD_INSUFFICIENT_SAMPLE_DIVERSITY = 7986
H_ERR_DL_OOD_INTERNAL_ERROR = 7987
H_ERR_DL_OOD_INVALID = 7988
# Raised nowhere: of models for anomalies, which are not there yet.
H_ERR_DL_GCAD_NETWORK_NOT_AVAILABLE = 7870
H_ERR_DL_ANOMALY_MODEL_INTERNAL = 7880
H_ERR_DL_ANOMALY_MODEL_UNTRAINED = 7881
H_ERR_DL_ANOMALY_MODEL_TRAINING_FAILED = 7882
H_ERR_DL_ANOMALY_MODEL_PARAM_TRAINED = 7883
H_ERR_DL_ANOMALY_MODEL_RESIZE = 7884
H_ERR_DL_ANOMALY_MODEL_DEPTH = 7885
H_ERR_DL_ANOMALY_MODEL_INPUT_DOMAIN = 7886
H_ERR_CTPL_WTYP = 2400
H_ERR_WRONG_HANDLE_TYPE = 2404  # not verified: of a handle after `clear_dl_model`


def __getattr__(name: str) -> int:
    """The number of a name without the MODEL_ in it, as this module once had them."""
    full = name.replace("H_ERR_DL_", "H_ERR_DL_MODEL_")
    if full != name and full in globals():
        return globals()[full]
    raise AttributeError(f"learnkit.halcon.errors has no {name!r}; it has HALCON's names H_ERR_...")


class HError(LearnkitError):
    """Any error of this module; `error_code` is HALCON's number, None where it has none.

    Procedures throw it with a message of their own.
    """

    error_code: int | None = None

    @property
    def message(self) -> str:
        """What is wrong, and what to do."""
        return str(self)


class HOperatorError(HError):
    """An operator's error, with HALCON's number in `error_code`."""


class HTupleConversionError(HError):
    """A tuple of another length than one, where an operator's `_s` form gives its one element."""


def operator_error(code: int, message: str) -> HOperatorError:
    """An operator's error with this number."""
    error = HOperatorError(message)
    error.error_code = error.code = code
    return error


def as_halcon_error(error: LearnkitError) -> HError:
    """The error with HALCON's number, if it has one; it is still of the class it was of."""
    base: Any = HError if error.code is None else HOperatorError
    kind = type(base.__name__, (base, type(error)), {"__module__": base.__module__})
    found = kind(str(error))
    # what it carries besides its text, such as the `evaluation` of the images that were read
    vars(found).update(vars(error))
    found.error_code = error.code
    return found
