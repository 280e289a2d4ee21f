"""Scores of other papers, and how they were measured."""

from __future__ import annotations

import dataclasses
import itertools
import typing

import pytest

from css_ray.models.encoders import unknown_encoder
from css_ray.reports import field
from css_ray.reports.printed import PRINTED
from css_ray.reports.published import Protocol
from css_ray.study.definition.sections import PUBLISHED


def test_studies_may_name_every_published_table() -> None:
    assert tuple(PRINTED) == PUBLISHED


@pytest.mark.parametrize("name", PRINTED)
def test_every_row_has_a_protocol(name: str) -> None:
    table = PRINTED[name]
    assert table.sources.keys() == table.rows.keys()
    for row, source in table.sources.items():
        assert source.protocol.splits is not None or row == "CCT"
        assert source.protocol.encoder is not None
        spread = [score.std for score in table.rows[row].values() if score.std is not None]
        # Of several runs a standard deviation is printed.
        assert bool(spread) == (source.protocol.n > 1)


def test_encoders_have_the_names_that_studies_give_them() -> None:
    """A difference of names that is none of networks would be reported as one. timm has no CLIP or SegFormer by these names."""
    named = {source.protocol.encoder for table in PRINTED.values() for source in table.sources.values()}
    for encoder in sorted(filter(None, named)):
        assert unknown_encoder(encoder) is None or encoder in ("mit_b5", "CLIP ViT-B")


def test_values_of_a_protocol_are_those_of_settings() -> None:
    evaluations = typing.get_args(typing.get_args(typing.get_type_hints(Protocol)["evaluation"])[0])
    assert {"whole_image", "sliding_window"} < set(evaluations)


def test_unknown_parts_of_a_protocol_are_not_differences() -> None:
    ours = Protocol(splits="drawn", encoder="tiny", output_stride=2, crop=40, evaluation="whole_image", at="last", n=5)
    assert Protocol(at="last", n=5).differences(ours) == []
    assert ours.differences(ours) == []
    assert dataclasses.replace(ours, crop=512).differences(ours) == ["crop 512 (here 40)"]


def test_more_labels_hardly_score_lower() -> None:
    """An oracle for wrong digits: with more labels no printed score falls by more than 1.5 points."""
    for table in field.TABLES.values():
        for row, cells in table.rows.items():
            means = [score.mean for score in cells.values()]
            assert all(later > earlier - 1.5 for earlier, later in itertools.pairwise(means)), (table.name, row)
