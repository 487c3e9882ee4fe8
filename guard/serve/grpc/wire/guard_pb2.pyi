from guard.serve.grpc.wire import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InspectRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.ModelInferRequest
    def __init__(self, request: _Optional[_Union[_inference_pb2.ModelInferRequest, _Mapping[str, object]]] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("action", "items", "bundle_digest", "request_p_value")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    action: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    bundle_digest: str
    request_p_value: float
    def __init__(self, action: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping[str, object]]]] = ..., bundle_digest: _Optional[str] = ..., request_p_value: _Optional[float] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("action", "p_value", "prediction", "program", "detectors")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    DETECTORS_FIELD_NUMBER: _ClassVar[int]
    action: str
    p_value: float
    prediction: int
    program: str
    detectors: _containers.RepeatedCompositeFieldContainer[Detector]
    def __init__(self, action: _Optional[str] = ..., p_value: _Optional[float] = ..., prediction: _Optional[int] = ..., program: _Optional[str] = ..., detectors: _Optional[_Iterable[_Union[Detector, _Mapping[str, object]]]] = ...) -> None: ...

class Detector(_message.Message):
    __slots__ = ("name", "p_value", "score")
    NAME_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    p_value: float
    score: float
    def __init__(self, name: _Optional[str] = ..., p_value: _Optional[float] = ..., score: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: _inference_pb2.ModelInferRequest
    def __init__(self, request: _Optional[_Union[_inference_pb2.ModelInferRequest, _Mapping[str, object]]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("items", "bundle_digest")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Explanation]
    bundle_digest: str
    def __init__(self, items: _Optional[_Iterable[_Union[Explanation, _Mapping[str, object]]]] = ..., bundle_digest: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("verdict", "probability", "saliency", "opinions", "nearest")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SALIENCY_FIELD_NUMBER: _ClassVar[int]
    OPINIONS_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    verdict: Item
    probability: float
    saliency: SaliencyMap
    opinions: _containers.RepeatedCompositeFieldContainer[Opinion]
    nearest: _containers.RepeatedCompositeFieldContainer[NearestItem]
    def __init__(self, verdict: _Optional[_Union[Item, _Mapping[str, object]]] = ..., probability: _Optional[float] = ..., saliency: _Optional[_Union[SaliencyMap, _Mapping[str, object]]] = ..., opinions: _Optional[_Iterable[_Union[Opinion, _Mapping[str, object]]]] = ..., nearest: _Optional[_Iterable[_Union[NearestItem, _Mapping[str, object]]]] = ...) -> None: ...

class SaliencyMap(_message.Message):
    __slots__ = ("shape", "levels")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    levels: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., levels: _Optional[bytes] = ...) -> None: ...

class Opinion(_message.Message):
    __slots__ = ("name", "prediction", "probability", "model_class_probability")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_CLASS_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    prediction: int
    probability: float
    model_class_probability: float
    def __init__(self, name: _Optional[str] = ..., prediction: _Optional[int] = ..., probability: _Optional[float] = ..., model_class_probability: _Optional[float] = ...) -> None: ...

class NearestItem(_message.Message):
    __slots__ = ("sample", "distance", "prediction", "p_value")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    sample: int
    distance: float
    prediction: int
    p_value: float
    def __init__(self, sample: _Optional[int] = ..., distance: _Optional[float] = ..., prediction: _Optional[int] = ..., p_value: _Optional[float] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("bundle_digest", "manifest_json", "mode", "on_failure", "rows", "repair", "reject_rate", "flag_rate", "calibration_items", "ready", "not_ready_because", "guard_version", "models")
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ON_FAILURE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    REJECT_RATE_FIELD_NUMBER: _ClassVar[int]
    FLAG_RATE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ITEMS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    GUARD_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    bundle_digest: str
    manifest_json: str
    mode: str
    on_failure: str
    rows: str
    repair: str
    reject_rate: float
    flag_rate: float
    calibration_items: int
    ready: bool
    not_ready_because: str
    guard_version: str
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, bundle_digest: _Optional[str] = ..., manifest_json: _Optional[str] = ..., mode: _Optional[str] = ..., on_failure: _Optional[str] = ..., rows: _Optional[str] = ..., repair: _Optional[str] = ..., reject_rate: _Optional[float] = ..., flag_rate: _Optional[float] = ..., calibration_items: _Optional[int] = ..., ready: bool = ..., not_ready_because: _Optional[str] = ..., guard_version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping[str, object]]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "label", "bundle_digest", "manifest_json", "mode", "on_failure", "rows", "repair", "reject_rate", "flag_rate", "calibration_items", "ready", "not_ready_because")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ON_FAILURE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    REJECT_RATE_FIELD_NUMBER: _ClassVar[int]
    FLAG_RATE_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ITEMS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    NOT_READY_BECAUSE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    label: str
    bundle_digest: str
    manifest_json: str
    mode: str
    on_failure: str
    rows: str
    repair: str
    reject_rate: float
    flag_rate: float
    calibration_items: int
    ready: bool
    not_ready_because: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., label: _Optional[str] = ..., bundle_digest: _Optional[str] = ..., manifest_json: _Optional[str] = ..., mode: _Optional[str] = ..., on_failure: _Optional[str] = ..., rows: _Optional[str] = ..., repair: _Optional[str] = ..., reject_rate: _Optional[float] = ..., flag_rate: _Optional[float] = ..., calibration_items: _Optional[int] = ..., ready: bool = ..., not_ready_because: _Optional[str] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("remaining_s", "closed", "told", "connections", "calls")
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    remaining_s: float
    closed: bool
    told: int
    connections: int
    calls: int
    def __init__(self, remaining_s: _Optional[float] = ..., closed: bool = ..., told: _Optional[int] = ..., connections: _Optional[int] = ..., calls: _Optional[int] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("result", "changed", "needs_restart")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    NEEDS_RESTART_FIELD_NUMBER: _ClassVar[int]
    result: str
    changed: _containers.RepeatedScalarFieldContainer[str]
    needs_restart: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, result: _Optional[str] = ..., changed: _Optional[_Iterable[str]] = ..., needs_restart: _Optional[_Iterable[str]] = ...) -> None: ...
