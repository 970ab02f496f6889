"""`optimum-cli export hf-ext`: Optimum looks for commands in the folders of this name, in every distribution.

There is no `__init__.py` in them: `optimum` is a namespace that distributions share (PEP 420).
"""

import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


NAME = "hf-ext"

if "openvino" in sys.argv:  # optimum-intel's command, which asks nobody for further architectures
    import hf_ext  # noqa: F401


class HfxExportCommand(BaseOptimumCLICommand):
    """The same options and work as `hf-ext export`."""

    COMMAND = CommandInfo(name=NAME, help="Export models of hf_ext to ONNX, OpenVINO and torch.export.")

    @staticmethod
    def parse_args(parser):
        """Add the arguments; not for other commands, which would wait for torch."""
        if NAME in sys.argv:
            from hf_ext.export.options import add_export_arguments

            add_export_arguments(parser)

    def run(self):
        """Export, or verify; a mistake is one line on stderr and exit code 2."""
        from hf_ext.export.export_command import run_export
        from hf_ext.training.recipe import run_recipe_main

        run_recipe_main(lambda _: run_export(self.args))


REGISTER_COMMANDS = [(HfxExportCommand, ExportCommand)]
