import pytest

from learnkit.serving.metrics import _labels, metrics_text


def test_a_gauge_has_its_help_its_type_and_its_value():
    assert metrics_text({"requests": 2}, None) == (
        "# HELP learnkit_requests Requests under way.\n"
        "# TYPE learnkit_requests gauge\n"
        "learnkit_requests 2\n"
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a", "a"),
        ('say "hi"', r"say \"hi\""),
        ("a\\b", r"a\\b"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_names_of_classes_cannot_break_a_line(name, written):
    assert _labels({"label": name}) == f'{{label="{written}"}}'
