"""Tables of records: numbers counted by hand or by numpy, and nothing missing that is not said."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from css_ray.records import Record, Status
from css_ray.reporting import results_table, scoring
from css_ray.reports.printed import printed_table
from css_ray.reports.published import Protocol
from css_ray.reports.render import to_csv, to_html, to_latex, to_markdown, to_text
from css_ray.reports.table import Table, make_table, score_trials, trial_table
from css_ray.study.definition import read

STUDIES = Path(__file__).parents[2] / "studies"


def run(
    trial: int,
    split: int,
    miou: float | None,
    row: str = "CSS (mix)",
    status: Status = "finished",
    reason: str = "",
    **params: object,
) -> Record:
    """A record whose best evaluation is 1 point above its last one. `labelled=92` stands for `data.labelled`."""
    params = {f"data.{name}": value for name, value in params.items()}
    last = {} if miou is None else {"val/miou": miou}
    best = {} if miou is None else {"val/miou": miou + 1}
    return Record(
        study="toy", trial=trial, split=split, row=row, source="grid", params=params, status=status, last=last, best=best,
        reason=reason, run_id=f"run-{trial}-{split}",
    )  # fmt: skip


# Two rows x two columns; one run failed, one is running, one was never started.
RECORDS = [
    run(0, 0, 60.0, "Sup.", labelled=92),
    run(0, 1, 61.0, "Sup.", labelled=92),
    run(0, 2, 65.0, "Sup.", labelled=92),
    run(1, 0, 70.0, "Sup.", labelled=183),
    run(1, 1, None, "Sup.", status="failed", reason="CUDA out of memory:\ntried 2 GiB", labelled=183),
    run(2, 0, 68.25, labelled=92),
    run(2, 1, 63.25, labelled=92),
    run(2, 2, 72.5, labelled=92),
    run(3, 0, 66.0, labelled=183),
    run(3, 1, 67.0, labelled=183),
    run(3, 2, None, status="running", labelled=183),
]


def table(**settings: object) -> Table:
    return make_table(RECORDS, **({"columns": "data.labelled"} | settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(("at", "more"), [("last", 0.0), ("best", 1.0)])
def test_mean_and_std_are_numpys(ddof: int, at: str, more: float) -> None:
    score = table(ddof=ddof, at=at).cells["CSS (mix)", 92].score
    values = np.array([68.25, 63.25, 72.5]) + more
    assert score.mean == pytest.approx(values.mean(), abs=1e-12)
    assert score.std == pytest.approx(values.std(ddof=ddof), abs=1e-12)
    assert score.text == f"{values.mean():.2f} ± {values.std(ddof=ddof):.2f}"


def test_rows_and_columns_in_order() -> None:
    found = make_table(reversed(RECORDS), columns="data.labelled")
    assert (found.rows, found.columns) == (("Sup.", "CSS (mix)"), (92, 183))
    one_column = make_table(RECORDS[:3])
    assert (one_column.columns, one_column.cells["Sup.", "val/miou"].text) == (("val/miou",), "62.00 ± 2.65")
    by_parameter = make_table(RECORDS, rows="data.labelled", columns="data.labelled")
    assert by_parameter.rows == (92, 183)


def test_cell_knows_its_splits_and_runs() -> None:
    score = table().cells["Sup.", 92].score
    assert score.values == {0: 60.0, 1: 61.0, 2: 65.0}
    assert score.run_ids == {0: "run-0-0", 1: "run-0-1", 2: "run-0-2"}


def test_missing_splits_are_counted_and_explained() -> None:
    found = table()
    assert found.cells["Sup.", 183].text == "70.00 (n=1 of 3)"
    assert found.cells["CSS (mix)", 183].text == "66.50 ± 0.71 (n=2 of 3)"
    assert found.grid().notes == (
        "Sup., 183: split 1 failed: CUDA out of memory: tried 2 GiB; split 2 was not started",
        "CSS (mix), 183: split 2 has not finished (step 0)",
    )
    # An incomplete score is never the best, not even in a column without a complete one.
    assert found.best(183) == set() and found.best(92) == {"CSS (mix)"}


def test_more_splits_expected_than_any_trial_has() -> None:
    assert table(splits=5).cells["Sup.", 92].text == "62.00 ± 2.65 (n=3 of 5)"
    with pytest.raises(ValueError, match="3 splits, expected at most 2"):
        table(splits=2)


def test_no_value_at_all() -> None:
    found = make_table([run(0, 0, None, status="failed", reason="no GPU")])
    assert found.cells["CSS (mix)", "val/miou"].text == "– (n=0 of 1)"
    assert "no GPU" in to_text(found)
    with pytest.raises(ValueError, match="run the study first"):
        make_table([])
    with pytest.raises(ValueError, match=r"'data.labeled'; choose one of row, data.labelled"):
        table(columns="data.labeled")


def test_ties_to_two_decimals_are_all_best() -> None:
    found = make_table([run(0, 0, 50.001, "a"), run(1, 0, 50.004, "b"), run(2, 0, 49.99, "c")])
    assert found.best("val/miou") == {"a", "b"}


SEARCH = [
    run(0, 0, 60.0), run(0, 1, 62.0),
    run(1, 0, 64.0), run(1, 1, 66.0),
    run(2, 0, 90.0), run(2, 1, None, status="failed", reason="pruned"),
    run(3, 0, 10.0, "Sup."), run(3, 1, 20.0, "Sup."),
]  # fmt: skip


def test_best_of_several_trials_is_the_best_complete_one() -> None:
    found = make_table(SEARCH)
    cell = found.cells["CSS (mix)", "val/miou"]
    assert cell.score.trial == 1 and cell.text == "65.00 ± 1.41, best of 2 trials"
    assert found.grid().notes == ("CSS (mix), val/miou: 1 of 3 trials are left out for lack of splits",)
    assert "optimistic" in found.caption
    lowest = make_table(SEARCH, mode="min")
    assert lowest.cells["CSS (mix)", "val/miou"].score.trial == 0 and lowest.best("val/miou") == {"Sup."}


def test_several_trials_of_which_none_is_complete() -> None:
    records = [run(0, 0, 60.0), run(1, 0, 61.0), run(1, 1, 62.0)]
    cell = make_table(records, splits=3).cells["CSS (mix)", "val/miou"]
    assert (cell.score.trial, cell.text) == (1, "61.50 ± 0.71 (n=2 of 3), best of 0 trials")


def test_trials_are_sorted_with_the_incomplete_ones_last() -> None:
    records = [*SEARCH, run(4, 0, 99.0, labelled=1)]
    assert [score.trial for score in score_trials(records)] == [1, 0, 3, 2 + 2, 2]
    assert [score.trial for score in score_trials(records, mode="min")][:3] == [3, 0, 1]
    found = trial_table(records)
    grid = found.grid()
    assert grid.header == ("trial", "row", "data.labelled", "split 0", "split 1", "mean ± std", "n")
    texts = [tuple(entry.text for entry in row) for row in grid.rows]
    assert texts[0] == ("1", "CSS (mix)", "–", "64.00", "66.00", "65.00 ± 1.41", "2")
    assert texts[3] == ("4", "CSS (mix)", "1", "99.00", "–", "99.00 (n=1 of 2)", "1")
    assert grid.notes == ("trial 4: split 1 was not started", "trial 2: split 1 failed: pruned")
    assert [row[-2].bold for row in grid.rows] == [True, False, False, False, False]


def test_a_setting_that_all_trials_share_has_no_column() -> None:
    records = [run(0, 0, 60.0, labelled=92, crop=320), run(1, 0, 61.0, labelled=183, crop=320)]
    assert trial_table(records).params == ("data.labelled",)
    assert trial_table(records, params=["data.crop"]).params == ("data.crop",)
    # One trial varies nothing.
    assert trial_table(records[:1]).params == ()


def test_by_default_the_mean_alone_ranks_and_the_std_is_the_samples() -> None:
    # 60 ± 14.1 and 58 ± 1.4.
    records = [run(0, 0, 57.0), run(0, 1, 59.0), run(1, 0, 50.0), run(1, 1, 70.0)]
    scores = score_trials(records)
    assert [score.trial for score in scores] == [1, 0] and scores[1].std == pytest.approx(2**0.5)
    (cell,) = make_table(records).cells.values()
    assert cell.score == scores[0] and trial_table(records).scores == tuple(scores)
    assert make_table(records).ddof == trial_table(records).ddof == 1


def test_a_trial_without_spread_loses_nothing_for_it() -> None:
    # 60.5 - 1.41 is less than 60 - 0.
    records = [run(0, 0, 60.0), run(0, 1, 60.0), run(1, 0, 59.5), run(1, 1, 61.5)]
    assert [score.trial for score in score_trials(records, std_weight=1.0)] == [0, 1]


# --------------------------------------------------------------------------------------------------------------- renderers


def test_markdown() -> None:
    assert to_markdown(table()) == (
        "toy: val/miou in percent at the last step; mean ± standard deviation (ddof=1) over n=3 splits.\n"
        "\n"
        "| row | 92 | 183 |\n"
        "|---|---|---|\n"
        "| Sup. | 62.00 ± 2.65 | 70.00 (n=1 of 3) [1] |\n"
        "| CSS (mix) | **68.00 ± 4.63** | 66.50 ± 0.71 (n=2 of 3) [2] |\n"
        "\n"
        "- [1] Sup., 183: split 1 failed: CUDA out of memory: tried 2 GiB; split 2 was not started\n"
        "- [2] CSS (mix), 183: split 2 has not finished (step 0)\n"
    )
    assert "| a\\|b |" in to_markdown(make_table([run(0, 0, 1.0, "a|b")]))


def test_markdown_beside_the_paper() -> None:
    """A study that scores what the paper prints shows the paper's line twice."""
    line = [("92", 68.09, 4.89), ("183", 71.93, 1.88), ("366", 74.91, 1.12), ("732", 77.57, 0.73)]
    records = []
    for trial, (labelled, mean, std) in enumerate(line):
        # With ddof=1, three values m - s, m, m + s have the mean m and the standard deviation s.
        values = (mean - std, mean, mean + std)
        records += [run(trial, split, value, "CSS(mix)", labelled=int(labelled)) for split, value in enumerate(values)]
    text = to_markdown(make_table(records, columns="data.labelled", compare_with=printed_table("paper/table1")))
    assert "| row | 92 | 92 (paper) | 183 | 183 (paper) | 366 | 366 (paper) | 732 | 732 (paper) |" in text
    cells = " | ".join(f"**{mean:.2f} ± {std:.2f}** | {mean:.2f} ± {std:.2f}" for _, mean, std in line)
    assert f"| CSS(mix) | {cells} |" in text
    assert "does not say whether its standard deviation" in text


def test_published_scores_name_their_source_and_where_their_protocol_differs() -> None:
    ours = Protocol(splits="drawn", encoder="resnet101s", output_stride=8, crop=512, evaluation="whole_image", at="last", n=3)
    rows = ("CSS (mix)", "U2PL", "CPS", "ST++", "mine")
    records = [run(trial, split, 70.0 + split, row, labelled=5291) for trial, row in enumerate(rows) for split in range(3)]
    made = make_table(
        records, columns="data.labelled", compare_with=printed_table("paper/table2"), protocols=dict.fromkeys(rows, ours)
    )
    assert made.caveat("CSS (mix)") == "measured with splits u2pl (here drawn), at best (here last), n 1 (here 3)"
    assert made.caveat("U2PL") == (
        "score of U2PL; measured with splits u2pl (here drawn), crop 513 (here 512), evaluation centre_crop (here whole_image), "
        "at best (here last), n 1 (here 3)"
    )
    assert "output stride 16 (here 8)" in made.caveat("CPS")
    assert made.caveat("ST++") == made.caveat("mine") == ""  # no score is printed in this column
    text = to_markdown(made)
    assert "| CSS(mix) |" not in text and "| CSS (mix) | **71.00 ± 1.00** | 81.06 [1] |" in text
    assert "- [1] paper, CSS (mix): measured with splits u2pl" in text and "- [3] paper, CPS: score of CPS; " in text
    line = next(line for line in csv.DictReader(io.StringIO(to_csv(made))) if line["row"] == "U2PL")
    assert line["paper_mean"] == "80.5" and line["paper_caveat"] == made.caveat("U2PL")


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ([], ""),
        (["model.output_stride=4"], ""),
        (["model.encoder=vit_base_patch14_dinov2.lvd142m", "model.decoder=auto"], ""),
        (["model.encoder=resnet101s", "model.decoder=auto"], "output stride 16 (here 8)"),
        (["model.encoder=resnet101s", "model.decoder=auto", "model.output_stride=16"], ""),
    ],
)
def test_a_vit_has_no_output_stride_to_differ(settings: list[str], theirs: str) -> None:
    study = read(STUDIES / "table2_dinov2.yaml", ["table.compare_with=field/voc_blender_u2pl", *settings])
    trials = study.grid_trials()
    records = [run(trial.index, 0, 70.0, trial.row, labelled=trial.params["data.labelled"]) for trial in trials]
    caveat = results_table(study, records, scoring(study, None, 1)).caveat("UniMatch")
    encoder = study.model.encoder.partition(".")[0]
    assert (f"encoder resnet101s (here {encoder})" in caveat) == (encoder != "resnet101s")
    assert caveat.startswith("score of UniMatch; measured with splits u2pl (here drawn)") and "n 1 (here 3)" in caveat
    assert re.findall(r"output stride[^,]*", caveat) == ([theirs] if theirs else [])


def test_rows_that_differ_alike_share_a_note() -> None:
    ours = Protocol(splits="drawn", encoder="tiny", output_stride=8, crop=512, evaluation="whole_image", at="best", n=3)
    records = [run(trial, 0, 70.0, row, labelled=92) for trial, row in enumerate(("Sup.", "MT", "other"))]
    made = make_table(
        records, columns="data.labelled", compare_with=printed_table("paper/table1"), protocols={"Sup.": ours, "MT": ours}
    )
    assert made.grid().notes == ("paper, Sup., MT: measured with splits own (here drawn), encoder resnet101 (here tiny)",)
    assert [row[2].notes for row in made.grid().rows] == [(1,), (1,), ()]


def test_text_is_aligned() -> None:
    lines = to_text(table()).splitlines()
    header, rule, *body = lines[2:6]
    assert header.index("183") == rule.rindex(" ") + 1 == body[0].index("70.00") == body[1].index("66.50")
    assert "68.00 ± 4.63*" in body[1]
    assert lines[7] == "* best of its column" and lines[8].startswith("[1] Sup., 183: split 1 failed")
    assert not any(line != line.rstrip() for line in lines)


def test_csv_has_a_line_a_cell_with_the_values_of_its_splits() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(table()))))
    assert len(lines) == 4
    cell = next(line for line in lines if (line["row"], line["data.labelled"]) == ("CSS (mix)", "92"))
    values = [float(cell[f"split_{split}"]) for split in range(3)]
    assert values == [68.25, 63.25, 72.5]
    assert float(cell["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-15)
    assert (cell["n"], cell["splits"], cell["ddof"], cell["at"], cell["run_2"]) == ("3", "3", "1", "last", "run-2-2")
    partial = next(line for line in lines if (line["row"], line["data.labelled"]) == ("Sup.", "183"))
    assert (partial["n"], partial["std"], partial["split_1"]) == ("1", "", "") and "out of memory" in partial["missing"]
    paper = list(csv.DictReader(io.StringIO(to_csv(table(compare_with=printed_table("paper/table1"))))))
    assert [line["paper_mean"] for line in paper] == ["51.57", "54.69", "68.09", "71.93"]
    assert len(to_csv(trial_table(RECORDS)).splitlines()) == 5


def test_latex() -> None:
    text = to_latex(make_table([run(0, 0, 50.0, "50% & more_x"), run(0, 1, 51.0, "50% & more_x")]))
    assert r"50\% \& more\_x & \textbf{50.50}$_{\pm 0.71}$ \\" in text
    assert r"\begin{tabular}{@{}lc@{}}" in text and text.count("{") == text.count("}")
    assert "±" not in to_latex(table()) and "$^{1}$ Sup., 183" in to_latex(table())


class Reader(HTMLParser):
    """Collects the texts of a page's cells and whether its tags balance."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & dict(attrs).keys(), "the page must load nothing"
        if tag != "meta":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data


def test_html_stands_alone_and_escapes() -> None:
    reader = Reader()
    page = to_html(make_table([run(0, 0, 50.0, "<b>&"), run(1, 0, None, "x", status="failed", reason="<script>")]))
    reader.feed(page)
    assert reader.cells == ["<b>&", "50.00", "x", "– (n=0 of 1)1"] and not reader.open
    assert "<script>" not in page and 'title="trial 0; split 0: 50.00"' in page and "<title>toy</title>" in page


@pytest.mark.parametrize("render", [to_text, to_markdown, to_latex, to_html])
def test_every_caption_says_metric_step_ddof_and_n(render: object) -> None:
    for drawable in (table(at="best", ddof=0), trial_table(RECORDS, at="best", ddof=0)):
        text = render(drawable)  # type: ignore[operator]
        assert all(words in text for words in ("val/miou", "at the best evaluation", "ddof=0", "n=3"))


def test_trials_may_be_ranked_by_their_mean_less_their_spread() -> None:
    """60 ± 14.1 has the higher mean, 58 ± 1.4 is the safer choice."""
    records = [
        Record(
            study="toy",
            trial=trial,
            split=split,
            row="CSS",
            source="search",
            params={},
            status="finished",
            last={"val/miou": value},
        )
        for trial, values in enumerate(((50.0, 70.0), (57.0, 59.0)))
        for split, value in enumerate(values)
    ]
    for std_weight, best in ((0.0, 0), (1.0, 1)):
        assert [score.trial for score in score_trials(records, std_weight=std_weight)] == [best, 1 - best]
        (cell,) = make_table(records, std_weight=std_weight).cells.values()
        assert cell.score.trial == best
        assert trial_table(records, std_weight=std_weight).scores[0].trial == best
