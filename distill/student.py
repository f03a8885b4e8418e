"""The student: the teacher's network with a second time, started from the teacher's weights."""

from dataclasses import replace

import torch

from teacher.network import MMAudio

NEW_PARAMETERS = ("interval_embed.", "guidance_embed.", "velocity_blocks.", "velocity_layer.")


def student_from_teacher(
    teacher: MMAudio, *, seed: int = 0, guidance_embedding: bool = False, velocity_head: int = 0
) -> MMAudio:
    """A network u(x_t, r, t) that starts as the teacher's velocity: u(x_t, r, t) = v(x_t, t) for every r and omega.

    The last layers of the interval's and the guidance scale's embeddings start at zero, so they add nothing until
    trained. A velocity head of `velocity_head` fused blocks starts as a copy of the teacher's last ones and of its
    final layer, and so at v(x_t, t) too. Raises ValueError if the teacher already has a second time.
    """
    if teacher.config.interval_embedding:
        raise ValueError("the teacher already has an interval embedding; a student starts from a flow-matching network")
    config = replace(
        teacher.config, interval_embedding=True, guidance_embedding=guidance_embedding, velocity_head=velocity_head
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = MMAudio(config).to(teacher.latent_mean.dtype)
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    if unexpected or any(not name.startswith(NEW_PARAMETERS) for name in missing):
        raise ValueError(f"the teacher's weights do not fit a student: missing {missing}, unexpected {unexpected}")
    if velocity_head:
        last = list(teacher.fused_blocks)[-velocity_head:]
        for branch, block in zip(student.velocity_blocks, last, strict=True):
            branch.load_state_dict(block.state_dict())
        student.velocity_layer.load_state_dict(teacher.final_layer.state_dict())
    return student
