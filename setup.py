import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
#: What OpenMIM looks for in ``.mim``, and :func:`lfi_mmdet.config_path`
SHIPPED = ('configs', 'tools', 'model-index.yml')


class BuildWithConfigs(build_py):
    """Puts configs, tools and the model index into the package."""

    def run(self) -> None:
        super().run()
        inside = Path('lfi_mmdet') / '.mim'
        if getattr(self, 'editable_mode', False):
            # the installed package is this folder
            target = ROOT / inside
            target.mkdir(exist_ok=True)
            for name in SHIPPED:
                link = target / name
                if not link.is_symlink():
                    link.symlink_to(Path('..') / '..' / name)
            return
        write_python_configs(Path(self.build_lib) / 'lfi_mmdet' / 'configs')
        target = Path(self.build_lib) / inside
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(source, target / name, ignore=ignored)
            else:
                shutil.copy2(source, target / name)


def write_python_configs(folder: Path) -> None:
    """Write what configs in Python style inherit from: a module for each config.

    ``read_base`` takes modules of an installed package, whose names have no hyphens;
    mmengine does not find those of an editable install.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for path in sorted((ROOT / 'configs').glob('lfi*/*.py')):
        name = f'{path.parent.name}/{path.name}'
        module = folder / name.replace('-', '_')
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(
            f'# configs/{name}, for `with read_base():`\n'
            f"globals().update(__import__('lfi_mmdet').config_settings({name!r}))\n"
        )


def requirements(name: str) -> list[str]:
    """Read one file of ``requirements/`` without its comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def version() -> str:
    namespace: dict = {}
    exec((ROOT / 'lfi_mmdet' / 'version.py').read_text(), namespace)
    return namespace['__version__']


readme = ROOT / 'README.md'
setup(
    name='lfi_mmdet',
    version=version(),
    description='Learning from Interactions (LFI) for MMDetection',
    long_description=readme.read_text() if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['lfi_mmdet', 'lfi_mmdet.*']),
    cmdclass=dict(build_py=BuildWithConfigs),
    entry_points=dict(console_scripts=['lfi-mmdet = lfi_mmdet.cli:main']),
    install_requires=requirements('install'),
    extras_require=dict(
        blip=requirements('blip'),
        clip=['open_clip_torch>=2.32'],
        siglip=['open_clip_torch>=2.32', *requirements('blip'), 'sentencepiece'],
        deploy=requirements('deploy'),
        dev=requirements('dev'),
    ),
)
