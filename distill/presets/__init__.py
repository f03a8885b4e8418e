"""Complete configurations by name, for the command lines and for code."""

from distill.presets.students import (
    student_debug,
    student_demo,
    student_large_44k_v2,
    student_large_44k_v2_heal,
    student_mf_mjt,
    student_mf_mjt_guided,
    student_mf_mjt_lora,
    student_mf_mjt_unguided,
)
from distill.presets.teachers import (
    PUBLISHED,
    teacher_debug,
    teacher_demo,
    teacher_finetune,
    teacher_lora,
    teacher_published,
)

__all__ = [
    "PUBLISHED",
    "student_demo",
    "student_mf_mjt",
    "student_mf_mjt_unguided",
    "student_mf_mjt_guided",
    "student_mf_mjt_lora",
    "student_large_44k_v2_heal",
    "student_large_44k_v2",
    "student_debug",
    "teacher_demo",
    "teacher_published",
    "teacher_debug",
    "teacher_finetune",
    "teacher_lora",
]
