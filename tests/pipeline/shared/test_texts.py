from __future__ import annotations

import io

from pipeline.commands.printing import PlainConsole, _table, print_line
from pipeline.report.wording import key_of
from pipeline.shared.spreadsheets import quoted_cell, unquoted_cell
from pipeline.shared.texts import file_name, one_line, printable


def test_control_characters_are_written_out() -> None:
    assert (
        printable("a\x1b[31mb\x07\r\n\x9b\u202e\u2028")
        == "a\\x1b[31mb\\x07\\x0d\n\\x9b\\u202e\\u2028"
    )
    assert one_line("a\nb\tc") == "a\\nb\\x09c"
    assert printable("Größe µm 日本") == "Größe µm 日本"


def test_a_console_prints_names_as_they_are() -> None:
    text = io.StringIO()
    console = PlainConsole(file=text, width=200)
    odd = "l[/x][bold]b[/] :smile: \x1b]0;title\x07 $x$"
    console.print(odd)
    print_line(console, odd)
    table = _table(odd, ("task",), ())
    table.add_row(f"{odd}\nsecond")
    console.print(table)
    printed = text.getvalue()
    assert printed.count("l[/x][bold]b[/] :smile: \\x1b]0;title\\x07 $x$") == 4
    assert "\x1b" not in printed
    assert "\\nsecond" in printed


def test_names_of_any_length_make_names_of_files() -> None:
    assert file_name("a b/c") == "a_b_c"
    assert len(file_name("x" * 300)) == 180
    assert len(file_name("日" * 300).encode()) <= 180
    assert len(key_of("日" * 300).encode()) <= 180
    assert key_of("x" * 300) != key_of("x" * 299)
    assert key_of("a b") == "a-b"


def test_a_formula_is_quoted_and_a_number_is_not() -> None:
    for text in ("=1+1", "+cmd", "-cmd", "@x", "\t=1", "\r=1"):
        assert quoted_cell(text) == f"'{text}"
        assert unquoted_cell(quoted_cell(text)) == text
    for text in ("-1", "+2.5", "-1e-3", "a=b", "'quoted'", ""):
        assert quoted_cell(text) == text
        assert unquoted_cell(text) == text
