import io
import re

import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from learnkit.cli.console import FittedTable, Report, cut_middle

PATHS = [f"/tmp/{'deep/' * 20}shot-{i:03d}.png" for i in range(3)]
PREDICTIONS = pd.DataFrame(
    {
        "path": PATHS,
        "label": ["scratched", "good", "dust"],
        "confidence": [0.98765, 0.5, 1.0],
        "unknown": ["", "yes", ""],
        "ood_score": [-0.25, 12.5, 0.0],
    }
)
FACTS = ["scratched", "0.9877", "good", "0.5000", "dust", "1.0000", "-0.2500", "12.5000", "yes"]


def shown(width, write, *, terminal=True, encoding="utf-8"):
    """Lines of what `write` writes on a terminal of `width` columns."""
    report, file = Report(), io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    wide = report.console.width
    report.console = Console(
        highlight=False,
        soft_wrap=True,
        width=width if terminal else wide,
        file=file,
        force_terminal=terminal,
        no_color=True,
    )
    write(report)
    file.flush()
    text = file.buffer.getvalue().decode(encoding)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("width", [30, 40, 66, 67, 80, 100, 200])
def test_a_table_of_predictions_fits_its_terminal_and_only_paths_are_cut(width):
    lines = shown(width, lambda report: report.frame(PREDICTIONS))
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert all(fact in text for fact in FACTS)
    for i in range(3):
        assert text.count(f"{i:03d}.png") == 1
    assert text.count(".png") == 3
    is_grid = width >= 67
    assert ("│" in text) == is_grid
    assert not is_grid or len(lines) == 3 + 4  # nothing is folded


def test_a_path_gets_the_room_that_the_others_leave_it():
    widths = {}
    for width in (67, 80, 300):
        row = shown(width, lambda report: report.frame(PREDICTIONS))[3]
        widths[width] = cell_len(row.split("│")[1].strip())
    assert widths == {67: 16, 80: 29, 300: len(PATHS[0])}


def test_a_pipe_gets_whole_paths_whatever_the_terminal_is(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    Report().frame(PREDICTIONS)
    lines = capsys.readouterr().out.splitlines()
    assert [path in line for path, line in zip(PATHS, lines[3:6], strict=True)] == [True] * 3


@pytest.mark.parametrize("width", [40, 58, 80])
def test_numbers_of_long_names_are_whole(width):
    frame = pd.DataFrame({"class": ["a class with a rather long name " * 2], "n": [12]})
    frame = frame.assign(precision=[0.75], recall=[0.123456], f1=[1 / 3], predicted=[9])
    lines = shown(width, lambda report: report.frame(frame))
    text = "\n".join(lines)
    assert all(number in text for number in ("12", "0.7500", "0.1235", "0.3333", "9"))
    if width == 80:
        assert max(map(cell_len, lines)) <= 80


def test_rows_left_out_are_counted():
    lines = shown(80, lambda report: report.frame(PREDICTIONS, max_rows=1))
    assert lines[-1] == "and 2 more"


def test_paths_to_files_stay_whole_in_a_narrow_terminal():
    files = [(PATHS[0], "a table"), (PATHS[1], "a model")]
    lines = shown(40, lambda report: report.files("Written", files))
    wanted = ["Written", f"    {PATHS[0]}", "        a table", f"    {PATHS[1]}", "        a model"]
    assert lines == wanted
    lines = shown(200, lambda report: report.files("Written", files))
    assert lines[1] == f"    {PATHS[0]}   a table"


def test_names_do_not_steer_the_terminal_or_break_lines():
    table = FittedTable(["path", "label"], [["a\nb\x1b[2Jc\udcff.png", "[red]x[/red]"]])
    lines = shown(80, lambda report: report.table(table))
    assert "│ a?b?[2Jc?.png │ [red]x[/red] │" in lines


def test_a_terminal_of_ascii_gets_dots():
    lines = shown(67, lambda report: report.frame(PREDICTIONS), encoding="ascii")
    assert sum("..." in line for line in lines) == 3


@pytest.mark.parametrize("width", range(4, 40))
def test_a_cut_text_is_as_wide_as_asked_and_keeps_both_ends(width):
    for text in ("/data/" + "x" * 40 + "/001.png", "图像/" * 12 + "001.png"):
        cut = cut_middle(text, width)
        assert cell_len(cut) <= width
        start, end = cut.split("…")
        assert text.startswith(start.strip())
        assert text.endswith(end.strip())
        assert len(end) >= len(start)
