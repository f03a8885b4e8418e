"""The columns of a paper's tables: which metric, printed how, under which name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.rows import Task

Better = Literal["lower", "higher"]
LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "−": r"$-$",
    "∞": r"$\infty$",
    "±": r"$\pm$",
}
"""What stands in LaTeX for a letter."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric: its key in a row, and how a paper prints it."""

    key: str
    name: str
    better: Better
    digits: int = 2
    sub: str = ""
    """Index after the name: the network the metric uses."""
    scale: float = 1.0

    @property
    def title(self) -> str:
        return f"{self.name}{'_' * bool(self.sub)}{self.sub} {'↓' if self.better == 'lower' else '↑'}"

    @property
    def latex(self) -> str:
        index = rf"\textsubscript{{{escaped(self.sub)}}}" if self.sub else ""
        return f"{escaped(self.name)}{index}{escaped('↓' if self.better == 'lower' else '↑')}"


FD_PASST = Column(key="fd_passt", name="FD", sub="PaSST", better="lower")
FD_PANNS = Column(key="fd_panns", name="FD", sub="PANNs", better="lower")
FD_VGG = Column(key="fd_vggish", name="FD", sub="VGG", better="lower")
IS_PANNS = Column(key="is_panns", name="IS", better="higher")
PUBLISHED: dict[Task, tuple[Column, ...]] = {
    "vta": (
        FD_PASST,
        FD_PANNS,
        FD_VGG,
        Column(key="kl_panns", name="KL", sub="PANNs", better="lower"),
        Column(key="kl_passt", name="KL", sub="PaSST", better="lower"),
        IS_PANNS,
        Column(key="ib_score", name="IB", better="higher", scale=100.0),
        Column(key="desync", name="DeSync", better="lower", digits=3),
    ),
    "tta": (
        FD_PANNS,
        FD_VGG,
        IS_PANNS,
        Column(key="clap_laion", name="CLAP", sub="LAION", better="higher", digits=3),
        Column(key="clap_ms", name="CLAP", sub="MS", better="higher", digits=3),
    ),
}
"""Columns of table 1 (VGGSound) and table 3 (AudioCaps), in their order, by the key of the metric in a row."""
EXTRA = (
    FD_PASST,
    Column(key="kl_panns", name="KL", sub="PANNs", better="lower"),
    Column(key="kl_passt", name="KL", sub="PaSST", better="lower"),
    Column(key="is_passt", name="IS", sub="PaSST", better="higher"),
    Column(key="kad_passt", name="KAD", sub="PaSST", better="lower"),
    Column(key="kad_panns", name="KAD", sub="PANNs", better="lower"),
    Column(key="clap_laion", name="CLAP", sub="LAION", better="higher", digits=3),
    Column(key="clap_ms", name="CLAP", sub="MS", better="higher", digits=3),
    Column(key="pam", name="PAM", better="higher", digits=3),
    Column(key="aes_pq", name="AES", sub="PQ", better="higher"),
    Column(key="aes_ce", name="AES", sub="CE", better="higher"),
    Column(key="aes_cu", name="AES", sub="CU", better="higher"),
)
"""Scores of published networks that those tables do not have; their columns follow where they were computed."""
OWN = (
    Column(key="frechet", name="Embedded-FD", better="lower"),
    Column(key="kad", name="Embedded-KAD", better="lower"),
    Column(key="kl", name="Embedded-KL", better="lower", digits=3),
    Column(key="inception_score", name="Embedded-IS", better="higher"),
    Column(key="onset_f1", name="Onset-F1", better="higher", digits=3),
)
"""Metrics that need no weights. No name of a published metric stands alone among them."""
EMBEDDED = (
    "Embedded scores use this project's own features and classes, fitted to this data; they are other quantities than "
    "the FD, KL and IS of publications and must not be compared with them."
)


def columns_of(task: Task) -> tuple[Column, ...]:
    """Those of the paper, other scores of published networks, then ours."""
    published = {c.key: c for c in (*PUBLISHED[task], *EXTRA)}
    return (*published.values(), *OWN)


def is_embedded(column: Column) -> bool:
    """Whether it is of this project's own features or classes."""
    return column in OWN and column.name.startswith("Embedded")


def kinds_told(columns: Sequence[Column]) -> str:
    """What kinds of scores some columns are."""
    found = ["scores of published networks"] * any(c not in OWN for c in columns)
    found += ["scores on this project's own (embedded) features"] * any(map(is_embedded, columns))
    found += ["onsets against known events"] * any(c in OWN and not is_embedded(c) for c in columns)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def escaped(text: str) -> str:
    """Text for LaTeX; arrows and signs become mathematics."""
    return "".join(LATEX.get(letter, letter) for letter in text)
