"""Names and order of parameters, as HALCON documents them."""

import inspect

import pytest

import learnkit.halcon as ha
from learnkit.halcon.operators import input_names

# operator or procedure -> its inputs in HALCON's order, by its names
DOCUMENTED = {
    "read_dl_model": "FileName",
    "write_dl_model": "DLModelHandle FileName",
    "serialize_dl_model": "DLModelHandle",
    "deserialize_dl_model": "SerializedItemHandle",
    "clear_dl_model": "DLModelHandle",
    "get_dl_model_param": "DLModelHandle GenParamName",
    "set_dl_model_param": "DLModelHandle GenParamName GenParamValue",
    "apply_dl_model": "DLModelHandle DLSampleBatch Outputs",
    "train_dl_model_batch": "DLModelHandle DLSampleBatch",
    "gen_dl_model_heatmap": "DLModelHandle DLSample HeatmapMethod TargetClasses GenParam",
    "init_dl_continual_learning": "DLModelHandle DLDataset GenParam",
    "extend_dl_continual_learning": "DLModelHandle DLDataset GenParam",
    "fit_dl_out_of_distribution": "DLModelHandle DLDataset GenParam",
    "optimize_dl_model_for_inference": "DLModelHandle DLDeviceHandle Precision DLSamples GenParam",
    "query_available_dl_devices": "GenParamName GenParamValue",
    "get_dl_device_param": "DLDeviceHandle GenParamName",
    "set_dl_device_param": "DLDeviceHandle GenParamName GenParamValue",
    "read_dl_dataset_classification": "RawImageFolder LabelSource",
    "read_dl_dataset_segmentation": (
        "ImageDir SegmentationDir ClassNames ClassIDs ImageList SegmentationList GenParam"
    ),
    "read_dl_dataset_anomaly": "ImageDir AnomalyDir ImageList AnomalyList GenParam",
    "read_dl_dataset_from_coco": "CocoFileName ImageDir GenParam",
    "split_dl_dataset": "DLDataset TrainingPercent ValidationPercent GenParam",
    "create_dl_preprocess_param": (
        "DLModelType ImageWidth ImageHeight ImageNumChannels ImageRangeMin ImageRangeMax "
        "NormalizationType DomainHandling IgnoreClassIDs SetBackgroundID ClassIDsBackground "
        "GenParam"
    ),
    "create_dl_preprocess_param_from_model": (
        "DLModelHandle NormalizationType DomainHandling SetBackgroundID ClassIDsBackground GenParam"
    ),
    "preprocess_dl_dataset": "DLDataset DataDirectory DLPreprocessParam GenParam",
    "preprocess_dl_samples": "DLSampleBatch DLPreprocessParam",
    "gen_dl_samples": "DLDataset SampleIndices RestrictKeysDLSample GenParam",
    "gen_dl_samples_from_images": "Images",
    "read_dl_samples": "DLDataset SampleIndices",
    "write_dl_samples": "DLDataset SampleIndices DLSampleBatch GenParamName GenParamValue",
    "find_dl_samples": "Samples KeyName KeyValue Mode",
    "augment_dl_samples": "DLSampleBatch GenParam",
    "create_dl_train_param": (
        "DLModelHandle NumEpochs EvaluationIntervalEpochs EnableDisplay RandomSeed GenParamName "
        "GenParamValue"
    ),
    "train_dl_model": "DLDataset DLModelHandle TrainParam StartEpoch",
    "evaluate_dl_model": "DLDataset DLModelHandle SampleSelectMethod SampleSelectValues GenParam",
    "dev_display_classification_evaluation": (
        "EvaluationResult EvalParam GenParam WindowHandleDict"
    ),
    "dev_display_dl_interactive_confusion_matrix": "DLDataset EvaluationResult GenParam",
    "dev_display_dl_data": (
        "DLSample DLResult DLDatasetInfo KeysForDisplay GenParam WindowHandleDict"
    ),
    "dev_display_dl_data_tiled": "DLDataset DLModelHandle NumSamples Split GenParam WindowHandle",
    "gen_dl_model_classification_heatmap": "DLModelHandle DLSample DLResult GenParam",
    "gen_confusion_matrix": (
        "GroundTruthLabels PredictedClasses GenParamName GenParamValue WindowHandle"
    ),
    "set_system": "SystemParameter Value",
    "create_dict": "",
    "copy_dict": "DictHandle GenParamName GenParamValue",
    "set_dict_tuple": "DictHandle Key Tuple",
    "set_dict_tuple_at": "DictHandle Key Index Value",
    "get_dict_tuple": "DictHandle Key",
    "set_dict_object": "Object DictHandle Key",
    "get_dict_object": "DictHandle Key",
    "get_dict_param": "DictHandle GenParamName DictKey",
    "remove_dict_key": "DictHandle Key",
    "read_dict": "FileName GenParamName GenParamValue",
    "write_dict": "DictHandle FileName GenParamName GenParamValue",
    "dict_to_json": "DictHandle GenParamName GenParamValue",
    "json_to_dict": "JsonString GenParamName GenParamValue",
    "train_dl_classifier_batch": "BatchImages DLClassifierHandle BatchLabels",
    "apply_dl_classifier": "Images DLClassifierHandle",
    "get_dl_classifier_result": "DLClassifierResultHandle Index GenResultName",
}
SINGLE = (
    "get_dl_model_param",
    "get_dl_device_param",
    "get_dict_tuple",
    "get_dict_param",
    "query_available_dl_devices",
    "gen_dl_model_heatmap",
    "dict_to_json",
    "json_to_dict",
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_parameters_stand_in_halcons_order_under_the_bindings_names(name):
    plain = [one.replace("_", "") for one in input_names(getattr(ha, name))]
    assert plain == DOCUMENTED[name].lower().split()


@pytest.mark.parametrize("name", SINGLE)
def test_the_single_form_takes_the_same_parameters(name):
    single = getattr(ha, f"{name}_s")
    assert input_names(single) == input_names(getattr(ha, name))


def test_every_public_name_is_there_and_says_what_it_is():
    assert len(set(ha.__all__)) == len(ha.__all__)
    for name in ha.__all__:
        assert inspect.getdoc(getattr(ha, name)), name


def test_error_numbers_are_halcons_and_each_has_one_name():
    numbers = {name: value for name, value in vars(ha.errors).items() if name.startswith("H_ERR_")}
    assert len(set(numbers.values())) == len(numbers)
    assert numbers["H_ERR_DL_CONTINUAL_LEARNING_MODEL_ALREADY_INITIALIZED"] == 7972
    assert numbers["H_ERR_DL_OOD_INSUFFICIENT_SAMPLE_DIVERSITY"] == 7986
