from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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
    install_requires=requirements('install'),
    extras_require=dict(
        blip=requirements('blip'),
        clip=['open_clip_torch>=2.32'],
        siglip=['open_clip_torch>=2.32', *requirements('blip'), 'sentencepiece'],
        dev=requirements('dev'),
    ),
)
