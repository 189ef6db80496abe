"""The command ``lfi-mmdet``: the tools, wherever the package is installed."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence

from .shipped import shipped_root
from .version import __version__

#: Commands, the tool of each, and what it does
COMMANDS = {
    'train': ('train.py', 'train a detector, or pre-train its backbone'),
    'test': ('test.py', 'evaluate a checkpoint'),
    'dist-train': ('dist_train.sh', 'train on several GPUs'),
    'dist-test': ('dist_test.sh', 'evaluate on several GPUs'),
    'slurm-train': ('slurm_train.sh', 'train through Slurm'),
    'slurm-test': ('slurm_test.sh', 'evaluate through Slurm'),
    'check-teacher': ('check_teacher.py', 'measure how good the maps of a teacher are'),
    'cache-teacher': ('cache_teacher.py', 'store the targets of a teacher'),
    'analyze': ('analyze_interactions.py', 'compare what queries and teacher look at'),
    'benchmark': ('benchmark.py', 'measure time, memory and parameters'),
    'export': ('export_student.py', 'write the student alone'),
    'deploy': ('deploy.py', 'write a detector as ONNX or torch.export'),
    'download': ('download_model.py', 'fetch published weights'),
    'publish': ('publish_model.py', 'write a trained model for others'),
    'publish-teacher': ('publish_teacher.py', 'write a teacher alone'),
    'make-shapes': ('make_shapes.py', 'draw scenes as a COCO dataset'),
    'make-subset': ('make_subset.py', 'choose few images of a COCO dataset'),
    'make-vocabulary': ('make_vocabulary.py', 'cut a vocabulary to the words in use'),
    'study': ('study.py', 'run arms x seeds'),
    'report': ('report.py', 'make tables and plots of a study'),
}


def usage() -> str:
    """The commands, one per line."""
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {text}' for name, (_, text) in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: lfi-mmdet COMMAND [ARGUMENTS]',
            '',
            *lines,
            '',
            'lfi-mmdet COMMAND --help tells its arguments.',
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool.

    Args:
        argv: Command and arguments; None takes those of the program.

    Returns:
        The exit status.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ('-h', '--help'):
        print(usage())
        return 0 if args else 2
    if args[0] == '--version':
        print(f'lfi_mmdet {__version__}')
        return 0
    command, *rest = args
    if command not in COMMANDS:
        choices = ', '.join(COMMANDS)
        print(f'error: {command!r} is no command; choose {choices}', file=sys.stderr)
        return 2
    tool = shipped_root() / 'tools' / COMMANDS[command][0]
    if tool.suffix == '.sh':
        environment = dict(os.environ, PYTHON=os.environ.get('PYTHON', sys.executable))
        return subprocess.run(['bash', str(tool), *rest], env=environment).returncode
    before = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [str(tool), *rest], [str(tool.parent)]
    try:
        runpy.run_path(str(tool), run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    finally:
        sys.argv, sys.path[:] = before
    return 0
