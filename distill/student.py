"""The student: the teacher's network with a second time, started from the teacher's weights."""

from dataclasses import replace

import torch

from teacher.network import MMAudio

NEW_PARAMETERS = "interval_embed."


def student_from_teacher(teacher: MMAudio, *, seed: int = 0) -> MMAudio:
    """A network u(x_t, r, t) that starts as the teacher's velocity: u(x_t, r, t) = v(x_t, t) for every r.

    The interval embedding's last layer starts at zero, so it adds nothing until trained. Raises ValueError if the
    teacher already has one.
    """
    if teacher.config.interval_embedding:
        raise ValueError("the teacher already has an interval embedding; a student starts from a flow-matching network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = MMAudio(replace(teacher.config, interval_embedding=True)).to(teacher.latent_mean.dtype)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    if unexpected or any(not name.startswith(NEW_PARAMETERS) for name in missing):
        raise ValueError(f"the teacher's weights do not fit a student: missing {missing}, unexpected {unexpected}")
    return student
