"""Lines of texts from strangers."""

from teacher.files import (
    split_lines,
)


def test_lines_end_at_line_feeds_alone():
    assert split_lines("a\u2028b\n\x85c\x0c\r\nd") == ["a\u2028b", "\x85c\x0c", "d"]
    assert split_lines("") == []
    assert split_lines("a\n\n") == ["a", ""]
