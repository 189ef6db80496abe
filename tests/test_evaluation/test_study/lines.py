"""Results written by hand."""

import json
from pathlib import Path

CURVES = {10: 0.1, 20: 0.2}


def plan(arms=('twin', 'lfi'), seeds=(0, 1), **changes) -> dict:
    """The line that says what a study runs."""
    facts = dict(pretrain_iters=0, own_order=False, own_schedule=False)
    return dict(
        dict(
            kind='plan',
            study='test',
            title='Test',
            command=['tools/study.py', 'test.yaml'],
            settings=dict(s=dict(title='Scenes', iterations=20, tests=['val'])),
            arms={
                arm: dict(
                    facts, title=arm.upper(), twin='twin' if arm != 'twin' else None
                )
                for arm in arms
            },
            runs=[
                dict(id=f's/{arm}/seed{seed}', setting='s', arm=arm, seed=seed)
                for seed in seeds
                for arm in arms
            ],
            selection_seeds=[],
            groups={},
            compare=[],
            bars=[],
        ),
        **changes,
    )


def run(arm, seed, curve=None, status='finished', **changes) -> list[dict]:
    """Lines of one run; ``curve`` is mask mAP by iteration."""
    curve = CURVES if curve is None else curve
    base = dict(
        kind='run',
        study='test',
        id=f's/{arm}/seed{seed}',
        setting='s',
        arm=arm,
        seed=seed,
        status=status,
        reason=None if status == 'finished' else 'no luck',
        iterations=20,
        points=[10, 20],
        batch_size=4,
        pretrain_iters=0,
        data_hash=dict(train='d' * 64, val='v' * 64),
        start_weights_hash=str(seed) * 64,
        start_weights=dict(kept=0),
        order_hash='o' * 64,
        labelled_images_seen=80,
        schedule_hash='c' * 64,
        config_hash=arm,
        commit='abc',
        dirty=False,
        machine=dict(cpu='cpu', gpu=None),
        cpu_threads=1,
        versions=dict(torch='2'),
    )
    lines = [
        dict(
            {**base, **changes},
            iteration=step,
            metrics=dict(val=dict(segm_mAP=value, bbox_mAP=2 * value)),
        )
        for step, value in curve.items()
    ]
    if status != 'finished' or not lines:
        lines.append(dict({**base, **changes}, iteration=15, metrics={}))
    lines[-1]['final'] = True
    return lines


def write(path: Path, *parts) -> Path:
    """Write lines and lists of lines."""
    rows = []
    for part in parts:
        rows += part if isinstance(part, list) else [part]
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path
