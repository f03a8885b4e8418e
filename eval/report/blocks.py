"""What a report consists of: blocks, listed once for a task and rendered twice.

Each block writes itself as Markdown here and as HTML by the macro of its name in page.html.j2. Text in blocks is plain;
both renderings escape it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from eval.compare.rows import Kind
from eval.report.charts import Chart, Line
from eval.report.players import Example

LONG = 48
"""Letters from which on the text of a cell may be broken into lines."""


class Block(Protocol):
    """The interface of a part of a report, such as a table, a note or a card."""

    @property
    def macro(self) -> str:
        """Name of the macro in page.html.j2 that writes the block as HTML."""
        ...

    def markdown(self) -> Iterator[str]:
        """The block in Markdown, paragraph by paragraph; nothing where only a page can show it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of a table."""

    text: str
    spread: str = ""
    """A deviation, shown after the text in smaller type."""
    best: bool = False
    """Whether it is marked as the best of its column."""

    @property
    def long(self) -> bool:
        """Whether the text may be broken into lines."""
        return len(self.text) >= LONG


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table: its first cell, the others, and how it is coloured."""

    model: str
    """The text of the first column."""
    cells: tuple[Cell, ...]
    muted: bool = False
    """Set for real sound and the codec round trip, which are floors and ceilings, not results."""
    kind: Kind | None = None
    """The kind of model, which decides on the colour of the row."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column titles and rows."""

    macro: ClassVar[str] = "table"
    columns: tuple[str, ...]
    """Titles, that of the first column, the model, among them."""
    rows: tuple[TableRow, ...]

    @property
    def grouped(self) -> bool:
        """Whether consecutive rows are of one model, so that models are set apart by a line."""
        return any(a.model == b.model for a, b in zip(self.rows, self.rows[1:], strict=False))

    def markdown(self) -> Iterator[str]:
        lines = ["| " + " | ".join(map(_cell, self.columns)) + " |", "|---" * len(self.columns) + "|"]
        for row in self.rows:
            cells = [
                f"**{_cell(c.text)}** {_cell(c.spread)}".strip() if c.best else _cell(c.text + c.spread)
                for c in row.cells
            ]
            lines.append("| " + " | ".join((_cell(row.model), *cells)) + " |")
        yield "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A title above what follows: of a task (`level` 2), of a part of it (3) or of a table (4). The last is bold text
    in Markdown, no heading."""

    macro: ClassVar[str] = "heading"
    text: str
    level: int = 3
    anchor: str = ""
    """The anchor to which links within the page refer."""
    within: str = ""
    """Name of the part that the heading stands in; Markdown adds it, so that headings of a document differ."""

    def markdown(self) -> Iterator[str]:
        title = f"{self.text}{', ' * bool(self.within)}{self.within}"
        yield inert(f"**{title}**" if self.level > 3 else f"{'#' * self.level} {title}")


@dataclass(frozen=True)
class Paragraph:
    """Text that explains."""

    macro: ClassVar[str] = "paragraph"
    text: str

    def markdown(self) -> Iterator[str]:
        yield inert(self.text)


@dataclass(frozen=True, kw_only=True)
class Note:
    """A caution, preceded by one or two words for its subject."""

    macro: ClassVar[str] = "note"
    head: str
    text: str

    def markdown(self) -> Iterator[str]:
        yield inert(f"**{self.head}** {self.text}")


@dataclass(frozen=True)
class Bullets:
    """A short list of sentences."""

    macro: ClassVar[str] = "bullets"
    sentences: tuple[str, ...]

    def markdown(self) -> Iterator[str]:
        yield "\n".join(inert(f"- {sentence}") for sentence in self.sentences)


@dataclass(frozen=True, kw_only=True)
class Definitions:
    """Terms, each with its explanation."""

    macro: ClassVar[str] = "definitions"
    items: Mapping[str, str]

    def markdown(self) -> Iterator[str]:
        yield "\n".join(inert(f"- **{term}**: {text}") for term, text in self.items.items())


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Blocks that a page opens with a click and Markdown shows below the title."""

    macro: ClassVar[str] = "fold"
    title: str
    blocks: tuple[Block, ...]
    opened: bool = False
    heading: Heading | None = None
    """The heading in Markdown; without it the title is printed in bold."""

    def markdown(self) -> Iterator[str]:
        yield from [inert(f"**{self.title}**")] if self.heading is None else self.heading.markdown()
        yield from paragraphs(self.blocks)


class PageOnly:
    """A block that Markdown leaves out."""

    def markdown(self) -> Iterator[str]:
        yield from ()


@dataclass(frozen=True)
class OnPage(PageOnly):
    """Blocks that the page alone shows."""

    macro: ClassVar[str] = "on_page"
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Preformatted(PageOnly):
    """Text in a box, as it is: ids, commands."""

    macro: ClassVar[str] = "preformatted"
    text: str


@dataclass(frozen=True, kw_only=True)
class Facts(PageOnly):
    """Names with values and, below them, commands."""

    macro: ClassVar[str] = "facts"
    items: Mapping[str, str]
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """The leading numbers of one setting."""

    title: str
    kind: Kind
    values: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Cards(PageOnly):
    """Cards side by side."""

    macro: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True)
class Legend(PageOnly):
    """How the lines of the charts are drawn, and what their bars are."""

    macro: ClassVar[str] = "legend"
    lines: tuple[Line, ...]
    bars: str


@dataclass(frozen=True, kw_only=True)
class Charts(PageOnly):
    """Charts side by side."""

    macro: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True, kw_only=True)
class Players(PageOnly):
    """One example: its caption and a player of each of its versions."""

    macro: ClassVar[str] = "players"
    example: Example


def paragraphs(blocks: Iterable[Block]) -> Iterator[str]:
    """The Markdown of some blocks, paragraph by paragraph."""
    for block in blocks:
        yield from block.markdown()


def markdown(blocks: Sequence[Block]) -> str:
    """Some blocks in Markdown, without a line break at the end."""
    return "\n\n".join(paragraphs(blocks))


def inert(text: str) -> str:
    """A text in one line that Markdown shows without HTML, pictures, links or code, even where names contain them.
    Emphasis stays, since the report itself sets it."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`")
    return line.replace("![", "!\\[").replace("](", "]\\(").replace("][", "]\\[")


def _cell(text: str) -> str:
    return inert(text).replace("|", "\\|").replace("*", "\\*")
