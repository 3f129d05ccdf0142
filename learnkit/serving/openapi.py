"""The description of a server in OpenAPI 3.1: requests, answers, errors and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from learnkit._version import __version__

Schema = dict[str, Any]

_TEXT, _FLAG, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_COUNTS = {"type": "object", "additionalProperties": {"type": "integer"}}
_PAIR = {"type": "array", "items": _NUMBER_OR_NULL, "minItems": 2, "maxItems": 2}
_BYTES = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


_NULL = {"type": "null"}
_ONE_OR_MORE = _either(_TEXT, _TEXTS)


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object with these entries and no others."""
    return {
        "type": "object",
        "required": [*required],
        "properties": {**required, **(optional or {})},
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_FAILED = {"error": _TEXT, "request_id": _TEXT}
_ANSWERED = {"model": _TEXT, "predictions": {"type": "array", "items": _ref("Prediction")}}
_SCHEMAS: dict[str, Schema] = {
    "Error": _object(_FAILED),
    "Predicted": _object(
        {
            "name": _TEXT,
            "decision": {
                **_ONE_OR_MORE,
                "description": "the class, of a multi-label model its labels, or UNKNOWN",
            },
            "label": _ONE_OR_MORE,
            "index": _either(_COUNT, {"type": "array", "items": _COUNT}),
            "confidence": _SHARE,
            "probs": {"type": "object", "additionalProperties": _SHARE},
        },
        {
            "class_id": _either({"type": "integer"}, {"type": "array", "items": _COUNT}),
            "is_ood": _FLAG,
            "ood_score": _NUMBER_OR_NULL,
            "ood_threshold": _NUMBER_OR_NULL,
            "p_value": _either(_SHARE, _NULL),
            "prediction_set": _TEXTS,
        },
    ),
    "NotPredicted": _object({"name": _TEXT, "error": _TEXT}),
    "Prediction": _either(_ref("Predicted"), _ref("NotPredicted")),
    "Predictions": _object(_ANSWERED),
    "NoPredictions": _object({**_FAILED, **_ANSWERED}),
    "Change": _object(
        {
            "what": _TEXT,
            "classes_added": _TEXTS,
            "images": _either(_COUNTS, _NULL),
            "n_images": _either(_COUNTS, _NULL),
            "n_classes": _COUNT,
            "n_validation": {"type": "integer"},
            "threshold": _PAIR,
            "temperature": _PAIR,
            "seconds": {"type": "number"},
            "notes": _TEXTS,
            "accuracy": _either({"type": "object", "additionalProperties": _PAIR}, _NULL),
            "renamed": _either({"type": "object", "additionalProperties": _TEXT}, _NULL),
        }
    ),
    "Changed": _object({"model": _TEXT, "change": _ref("Change"), "saved": _FLAG}),
    "Reloaded": _object({"model": _TEXT, "former": _TEXT, "classes": _TEXTS}),
    "Alarm": _object({"image": _COUNT, "label": _either(_TEXT, _NULL), "sign": _TEXT}),
    "Drift": _object(
        {
            "status": {"enum": ["ok", "drift"]},
            "sentence": _TEXT,
            "images": _COUNT,
            "evidence": {"type": "number"},
            "alarm_at": {"type": "number"},
            "images_per_false_alarm": _COUNT,
            "alarms": {"type": "array", "items": _ref("Alarm")},
            "save_error": _either(_TEXT, _NULL),
        }
    ),
    "Health": _object(
        {
            "status": {"const": "ok"},
            "images_waiting": _COUNT,
            "requests": _COUNT,
            "unsaved_changes": _COUNT,
            "drift": _either(_ref("Drift"), _NULL),
        }
    ),
    "Ready": _object({"ready": {"const": True}}),
    "Model": _object(
        {
            "model": _TEXT,
            "classes": _TEXTS,
            "multi_label": _FLAG,
            "threshold": _either(_NUMBER_OR_NULL, {"type": "array", "items": _SHARE}),
            "ood_threshold": _NUMBER_OR_NULL,
            "images_per_class": _either(_COUNTS, _NULL),
            "size": {"type": "array", "items": _COUNT},
            "channels": _COUNT,
            "versions": {"type": "object", "additionalProperties": _either(_TEXT, _NULL)},
            "can_extend": _FLAG,
            "limits": {"type": "object", "additionalProperties": {"type": "number"}},
        }
    ),
    "Images": {
        "type": "object",
        "required": ["images"],
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": _either(
                    _BASE64,
                    {
                        "type": "object",
                        "required": ["data"],
                        "properties": {"data": _BASE64, "name": _TEXT},
                    },
                ),
            },
            "alpha": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "label": _ONE_OR_MORE,
            "group": _ONE_OR_MORE,
            "again": _FLAG,
        },
    },
}
_FORM = {
    "type": "object",
    "properties": {
        "images": {"type": "array", "items": _BYTES},
        "alpha": {"type": "number"},
        "label": _TEXTS,
        "group": _TEXTS,
        "again": {**_FLAG, "default": False},
    },
}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FORM},
        "application/json": {"schema": _ref("Images")},
        "application/octet-stream": {"schema": _BYTES},
    },
}
_RECEIVING = {
    "400": "no image, no form, no JSON, broken off, or a field that is wrong",
    "408": "it took too long to arrive",
    "413": "too large, or too many images",
    "503": "too many images wait; send it again after Retry-After",
}
_TAUGHT = {
    "401": "the token is missing or wrong",
    "403": "this server does not learn",
    "501": "this model cannot learn",
}
# Path, method, parameters of the address, body, answer, and what else is answered, by status.
_OPERATIONS: dict[str, tuple[str, tuple[str, ...], bool, str, dict[str, str]]] = {
    "predict": (
        "post",
        ("alpha",),
        True,
        "Predictions",
        {**_RECEIVING, "401": _TAUGHT["401"], "501": "this model has no prediction sets"},
    ),
    "extend": (
        "post",
        ("label", "group", "again"),
        True,
        "Changed",
        {**_RECEIVING, **_TAUGHT, "422": "images or labels that cannot be learned"},
    ),
    "undo": ("post", (), False, "Changed", {**_TAUGHT, "409": "there is nothing to take back"}),
    "reload": (
        "post",
        (),
        False,
        "Reloaded",
        {
            "401": _TAUGHT["401"],
            "403": "this server reloads for nobody",
            "409": "the new model cannot be opened, and the former one goes on",
            "501": "this server cannot open its model again",
        },
    ),
    "health": ("get", (), False, "Health", {}),
    "ready": ("get", (), False, "Ready", {"503": "too many images wait, or no class is known"}),
    "model": ("get", (), False, "Model", {"401": _TAUGHT["401"]}),
    "metrics": (
        "get",
        (),
        False,
        "",
        {"401": _TAUGHT["401"], "501": "prometheus_client is not installed"},
    ),
}
_TEACHING = ("extend", "undo", "reload")
_TELLING = ("predict", "model", "metrics")
_PARAMETERS: dict[str, Schema] = {
    "alpha": _SCHEMAS["Images"]["properties"]["alpha"],
    "label": _TEXT,
    "group": _TEXT,
    "again": _FLAG,
}


def openapi_document(docs: Mapping[str, str], *, predict_token: bool) -> dict[str, Any]:
    """The description of what there is for programs.

    Args:
        docs: what each path does, without its slash.
        predict_token: whether predicting takes a token.
    """
    bearer = lambda who: {"type": "http", "scheme": "bearer", "description": who}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "learnkit",
            "version": __version__,
            "description": "An image classifier over HTTP. Errors are one sentence.",
        },
        "paths": {
            f"/{name}": {_OPERATIONS[name][0]: _operation(name, text, predict_token)}
            for name, text in docs.items()
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "teacher": bearer("of who may teach, undo, reload, and predict"),
                "client": bearer("of who may predict"),
            },
        },
    }


def _operation(name: str, text: str, predict_token: bool) -> dict[str, Any]:
    _, parameters, has_body, answer, errors = _OPERATIONS[name]
    summary, _, more = text.partition("\n\n")
    # what the server itself, or a proxy before it, may answer to whatever is asked
    responses = {"200": _answer(answer), "default": _failure("what went wrong")}
    responses |= {status: _failure(why) for status, why in sorted(errors.items())}
    if name == "predict":
        responses["422"] = _response("no image could be predicted", "NoPredictions", "Error")
    security: list[dict[str, list[str]]] = []
    if name in _TEACHING:
        security = [{"teacher": []}]
    elif name in _TELLING and predict_token:
        security = [{"client": []}, {"teacher": []}]
    found = {
        "operationId": name,
        "summary": " ".join(summary.split()),
        "description": " ".join(more.split()),
        "parameters": [
            {"name": one, "in": "query", "schema": _PARAMETERS[one]} for one in parameters
        ],
        "responses": responses,
        "security": security,
    }
    return {**found, "requestBody": _BODY} if has_body else found


def _answer(name: str) -> Schema:
    if not name:
        return {"description": "done", "content": {"text/plain": {"schema": _TEXT}}}
    return _response("done", name)


def _failure(why: str) -> Schema:
    return _response(why, "Error")


def _response(why: str, *names: str) -> Schema:
    """A response of one of these schemas; as plain text where the client asks for it."""
    schema = _ref(names[0]) if len(names) == 1 else _either(*map(_ref, names))
    headers = {"X-Request-ID": {"schema": _TEXT, "required": True}}
    as_text = {"text/plain": {"schema": _TEXT}} if {*names} & {"Error", "Predictions"} else {}
    content = {"application/json": {"schema": schema}, **as_text}
    return {"description": why, "headers": headers, "content": content}
