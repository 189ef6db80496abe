"""Detectors as files of one graph: ONNX and ``torch.export``."""

from .agreement import Agreement, compare
from .deployed import DeployedDetector
from .deployment import Deployment, deploy, pipeline_facts, tested_shape
from .exporter import (
    FORMATS,
    Description,
    check_format,
    describe,
    export_program,
    write_program,
)

__all__ = [
    'FORMATS',
    'Agreement',
    'DeployedDetector',
    'Deployment',
    'Description',
    'check_format',
    'compare',
    'deploy',
    'describe',
    'export_program',
    'pipeline_facts',
    'tested_shape',
    'write_program',
]
