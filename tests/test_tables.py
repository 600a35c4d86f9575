"""Tables of a report: aligned as text, escaped as HTML, two significant digits."""

import pytest

from nablab.judge.tables import Shown, Table, digits_that_show, significant, two_digits, with_error

TABLE = Table("a < b", ("name", "x"), [("long name", "1.0"), ("<i>", "-0.25")], ["x & y"])


def test_text_is_aligned():
    assert str(TABLE).split("\n") == [
        "a < b",
        "  name           x",
        "  long name    1.0",
        "  <i>        -0.25",
        "x & y",
    ]


def test_html_is_escaped():
    assert TABLE._repr_html_() == (
        "<table><caption>a &lt; b</caption><tr><th>name</th><th>x</th></tr>"
        "<tr><td>long name</td><td>1.0</td></tr><tr><td>&lt;i&gt;</td><td>-0.25</td></tr></table>"
        "<p>x &amp; y</p>"
    )


def test_without_header_or_rows():
    assert str(Table("t", (), [("a", "b")])) == "t\n  a  b"
    assert "<th>" not in Table("t", (), [("a", "b")])._repr_html_()
    assert str(Table("t", ("a", "b"), [])) == "t\n  a  b"
    assert str(Table("t", (), [])) == "t"


def test_a_result_is_shown_as_its_table():
    class Result(Shown):
        table = TABLE

    assert str(Result()) == str(TABLE)
    assert Result()._repr_html_() == TABLE._repr_html_()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.96, "0.96"),
        (1.04, "1.0"),
        (12.3, "12"),
        (-0.0512, "-0.051"),
        (1.23e-7, "1.2e-07"),
        (1234.0, "1.2e+03"),
        (0.0, "0"),
        (float("inf"), "inf"),
        (float("nan"), "failed"),
    ],
)
def test_two_digits(value, text):
    assert two_digits(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (67.123, 1.4876, "67.1 ± 1.5"),
        (0.5, 0.00314, "0.5000 ± 0.0031"),
        (1234.5, 123.0, "1234 ± 123"),
        (99.0, 0.996, "99.00 ± 1.00"),
        (float("nan"), float("nan"), "failed ± failed"),
        (2.0, 0.0, "2.0 ± 0"),
    ],
)
def test_with_error(value, error, text):
    assert with_error(value, error) == text


def test_digits_are_enough_to_see_a_verdict():
    def below_one(value):
        return value < 1.0

    assert digits_that_show(below_one, 0.4) == 2
    assert digits_that_show(below_one, 0.9996) == 4
    assert digits_that_show(below_one, 1.0 - 2.0**-53) == 16
    assert significant(0.9996, 4) == "0.9996" and significant(0.9996, 3) == "1.00"
