"""Which teacher layer supervises which student layer."""

from __future__ import annotations

MAPPINGS = ('uniform', 'last', 'one_to_one')


def map_layers(rule: str, num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """Pair student layers with teacher layers.

    Args:
        rule: ``'uniform'``: every student layer, the teacher's layers spread evenly
            and the last beside the last; ``'last'``: the last beside the last, alone;
            ``'one_to_one'``: in order, for equal numbers of layers.
        num_student: Interaction layers of the student.
        num_teacher: Layers of the teacher.

    Returns:
        Pairs (student layer, teacher layer), counted from 0, in ascending order.

    Raises:
        ValueError: If the rule is unknown, a side has no layers, or the numbers differ
            under ``'one_to_one'``.
    """
    if rule not in MAPPINGS:
        raise ValueError(
            f'distiller.layer_mapping={rule!r} is not known; choose from {MAPPINGS}'
        )
    if num_student < 1 or num_teacher < 1:
        raise ValueError(
            f'cannot pair {num_student} student layers with {num_teacher} of a teacher'
        )
    if rule == 'last':
        return [(num_student - 1, num_teacher - 1)]
    if rule == 'one_to_one':
        if num_student != num_teacher:
            raise ValueError(
                f"distiller.layer_mapping='one_to_one' needs equal numbers of layers: "
                f'the student has {num_student}, the teacher {num_teacher}; choose '
                "'uniform' or 'last', or other layers"
            )
        return [(i, i) for i in range(num_student)]
    # ceil((i + 1) T / S) - 1, so that 12 teacher layers meet 4 as 2, 5, 8, 11
    return [
        (i, -(-(i + 1) * num_teacher // num_student) - 1) for i in range(num_student)
    ]
