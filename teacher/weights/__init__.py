"""Networks on disk: a run folder holds config.json and safetensors files; nothing in it can execute code."""

from teacher.files.components import (
    ComponentInfo,
    load_strictly,
    read_component,
    read_component_info,
    read_tensors,
)
from teacher.files.digests import file_digest
from teacher.files.errors import WeightsError
from teacher.weights.run_folder import (
    FeaturesInfo,
    load_network,
    read_features_info,
    read_licence,
    read_run_config,
    weight_file,
)

__all__ = [
    "ComponentInfo",
    "FeaturesInfo",
    "WeightsError",
    "file_digest",
    "load_network",
    "load_strictly",
    "read_component",
    "read_component_info",
    "read_features_info",
    "read_licence",
    "read_run_config",
    "read_tensors",
    "weight_file",
]
