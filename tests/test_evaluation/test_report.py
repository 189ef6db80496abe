"""A report is written whole or not at all, and says how it was made."""

import json
from pathlib import Path

import pytest
import torch

import lfi_mmdet
from lfi_mmdet.evaluation import run_info, write_json


def test_a_report_that_is_no_json_leaves_the_old_one_in_place(tmp_path):
    path = tmp_path / 'new' / 'report.json'
    write_json({'kl': 1.5}, path)
    for bad in ({'kl': float('nan')}, {'kl': torch.ones(1)}):
        with pytest.raises((ValueError, TypeError)):
            write_json(bad, path)
    assert json.loads(path.read_text()) == {'kl': 1.5}
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_report_in_place(tmp_path, monkeypatch):
    path = tmp_path / 'report.json'
    write_json({'kl': 1.5}, path)

    def half(self, text):
        with open(self, 'w') as file:
            file.write(text[:3])
        raise OSError('disk full')

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(OSError, match='disk full'):
        write_json({'kl': 2.5}, path)
    assert json.loads(path.read_text()) == {'kl': 1.5}
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_names_versions_and_command(monkeypatch):
    monkeypatch.setattr('sys.argv', ['tools/some.py', '--seed', '3'])
    info = json.loads(json.dumps(run_info()))
    assert info['command'] == ['some.py', '--seed', '3']
    assert info['versions']['lfi_mmdet'] == lfi_mmdet.__version__
    assert info['versions']['torch'] == torch.__version__
