"""Run the tools in this process, as importing mmdet in another takes seconds."""

import functools
import importlib.util
from pathlib import Path

import mmengine.config.config
import mmengine.config.utils
import pytest
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer
from yapf.yapflib import yapf_api

TOOLS = Path(__file__).parents[2] / 'tools'
read_metafiles = functools.cache(mmengine.config.utils._get_cfg_metainfo)


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_place(monkeypatch, folder):
    """Work in ``folder``, with an mmengine that spends no seconds on beauty."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv('LOCAL_RANK', '0')
    # onedl-mmengine imports it from yapf in the function that uses it
    formatter = getattr(mmengine.config.config, 'FormatCode', None)
    owner = mmengine.config.config if formatter else yapf_api
    monkeypatch.setattr(owner, 'FormatCode', lambda text, **kwargs: (text, True))
    monkeypatch.setattr(mmengine.config.utils, '_get_cfg_metainfo', read_metafiles)


def call_tool(name, *argv):
    """Call ``main`` of a tool; nothing is left of earlier runs in this process."""
    for manager in (MMLogger, MessageHub, Visualizer, DetLocalVisualizer):
        manager._instance_dict.clear()
    return load_tool(name).main([str(word) for word in argv])


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Call a tool in ``tmp_path``: ``tool('train', *arguments)``."""
    in_place(monkeypatch, tmp_path)
    return call_tool


@pytest.fixture
def refusal(tool):
    """Call a tool that has to end with a message, and return that."""

    def call(*argv):
        with pytest.raises(SystemExit) as caught:
            tool(*argv)
        # a text as code is printed, and the exit code is 1
        assert isinstance(caught.value.code, str)
        assert '\n' not in caught.value.code
        return caught.value.code

    return call
