"""All targets, by name. A new one is a file with a `Target`, and a line here."""

from hf_ext.export.executorch_target import ExecutorchTarget
from hf_ext.export.onnx_target import OnnxTarget
from hf_ext.export.openvino_target import OpenVinoTarget
from hf_ext.export.target import Target
from hf_ext.export.torch_export_target import TorchExportTarget


TARGETS: dict[str, Target] = {
    target.name: target for target in (OnnxTarget(), OpenVinoTarget(), ExecutorchTarget(), TorchExportTarget())
}
