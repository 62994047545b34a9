"""Tests of tables as text."""

from edgeprune_device.table import aligned, rows


def test_columns_are_as_wide_as_their_widest_cell():
    assert rows([["name", "state"], ["a-long-name", "good"]]) == ["name         state", "a-long-name  good"]


def test_figures_are_right_aligned():
    assert rows([["", "ms"], ["fp32", "10.25"], ["int8"]], figures=True) == ["         ms", "fp32  10.25", "int8"]


def test_no_rows_give_no_lines():
    assert rows([]) == []


def test_line_has_no_trailing_space():
    assert aligned(["a", ""], [4, 4]) == "a"
