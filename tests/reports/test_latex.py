"""Tables in LaTeX: what a paper takes of them, and whether pdflatex does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from css_ray.records import Record
from css_ray.reports import paper
from css_ray.reports.escapes import latex
from css_ray.reports.render import Drawable, draw, to_latex
from css_ray.reports.table import make_table, trial_table


def run(trial: int, split: int, miou: float, row: str = "CSS (mix)", **params: object) -> Record:
    scores = {"val/miou": miou}
    return Record(
        study="toy_study", trial=trial, split=split, row=row, source="grid", params=params, status="finished",
        last=scores, best=scores,
    )  # fmt: skip


def paper_like(rows: tuple[str, ...] = ("Sup.", "Baseline", "CSS (mix)")) -> list[Record]:
    """Rows x four numbers of labelled images, three splits each; one split is missing, and one cell has two trials."""
    places = [(row, labelled) for row in rows for labelled in (92, 183, 366, 732)]
    records = [
        run(trial, split, 60.0 + trial + 2 * split, row, **{"data.labelled": labelled})
        for trial, (row, labelled) in enumerate(places)
        for split in range(3)
    ]
    more = [run(90, split, 50.0, rows[0], **{"data.labelled": 92}) for split in range(3)]
    return [*records[:-1], *more]


def table(**settings: object) -> Drawable:
    return make_table(paper_like(), columns="data.labelled", **settings)  # type: ignore[arg-type]


def test_a_paper_takes_it_as_it_is() -> None:
    """Written by hand: trials 0 to 11 have 60 + trial, + 2 and + 4 on their splits, so a std of 2; the last one lacks 75."""
    assert to_latex(table()).splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\caption{Mean IoU on the validation images in percent, by number of labelled images.}",
        r"\label{tab:toy-study}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{2pt}",
        r"\begin{tabular}{@{}lcccc@{}}",
        r"\toprule",
        r"row & 92 & 183 & 366 & 732 \\",
        r"\midrule",
        r"Sup. & 62.00$_{\pm 2.00}$$^{2}$ & 63.00$_{\pm 2.00}$ & 64.00$_{\pm 2.00}$ & 65.00$_{\pm 2.00}$ \\",
        r"Baseline & 66.00$_{\pm 2.00}$ & 67.00$_{\pm 2.00}$ & 68.00$_{\pm 2.00}$ & \textbf{69.00}$_{\pm 2.00}$ \\",
        r"CSS (mix) & \textbf{70.00}$_{\pm 2.00}$ & \textbf{71.00}$_{\pm 2.00}$ & \textbf{72.00}$_{\pm 2.00}$ & "
        r"72.00$_{\pm 1.41}$$^{1}$ \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip\raggedright\scriptsize",
        r"toy\_study: val/miou in percent at the last step; mean $\pm$ standard deviation (ddof=1) over n=3 splits. "
        r"The best of several trials is an optimistic estimate: chance helps to choose it. Bold: the best.",
        "",
        r"$^{1}$ CSS (mix), 732: split 2 was not started",
        "",
        r"$^{2}$ best of 2 trials",
        r"\end{table}",
    ]


def test_symbols_of_settings_are_mathematics() -> None:
    settings: dict[str, Any] = {name: 0.5 for name in paper.SYMBOLS}
    made = trial_table([run(0, 0, 50.0, **settings)], params=list(settings), labels=paper.SYMBOLS)
    text = to_latex(made)
    header = text.splitlines()[text.splitlines().index(r"\toprule") + 1]
    assert header.startswith(
        r"trial & row & $\alpha$ & $\tau$ & $\delta_{u}$ & $\delta_{w}$ & $\delta_{s}$ & $\lambda_{c}$ & split 0 & mean $\pm$ std"
    )
    assert r"\label{tab:toy-study-trials}" in text and r"\begin{table*}" in text  # eleven columns do not fit one of a page's


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% & more_x #1 {a}", r"50\% \& more\_x \#1 \{a\}"),
        ("\\input{x}^^41", r"\textbackslash{}input\{x\}\textasciicircum{}\textasciicircum{}41"),
        ("[2pt]*", "{[}2pt{]}{*}"),
        ("<script>", "$<$script$>$"),
        ("-0.5 a-b CSS-2 x=-3", "$-$0.5 a-b CSS-2 x=$-$3"),
        ("Δ to α_x2, ε", r"$\Delta$ to $\alpha_{x2}$, $\varepsilon$"),
        ("a\n\nb\tc", "a  b c"),
    ],
)
def test_text_is_set_as_it_is(text: str, expected: str) -> None:
    assert latex(text) == expected


def test_numbers_are_aligned_by_siunitx() -> None:
    lines = draw(table(), "latex-siunitx").splitlines()
    assert lines[0] == r"% \usepackage{booktabs,siunitx}"
    column = r"S[detect-weight, table-format=2.2, table-align-text-post=false, table-space-text-post={$_{\pm 2.00}$}]"

    def with_note(number: int) -> str:
        std = "2.00" if number == 2 else "1.41"
        return column.replace("2.00}$}", f"{std}}}$$^{{{number}}}$}}")

    assert rf"\begin{{tabular}}{{@{{}}l{with_note(2)}{column * 2}{with_note(1)}@{{}}}}" in lines
    assert "row & {92} & {183} & {366} & {732} \\\\" in lines
    assert any(line.startswith(r"CSS (mix) & \bfseries 70.00{$_{\pm 2.00}$} & ") for line in lines)


def test_a_study_without_a_finished_run_has_dashes_and_a_reason() -> None:
    failed = Record(study="toy", trial=0, split=0, row="x", source="grid", params={}, status="failed", reason="no GPU & more")
    for format_ in ("latex", "latex-siunitx"):
        text = draw(make_table([failed]), format_)
        assert "x & --$^{1}$ \\\\" in text and r"$^{1}$ x, val/miou: split 0 failed: no GPU \& more" in text
        assert r"% \usepackage{booktabs}" in text and r"@{}lc@{}" in text  # nothing to align


HOSTILE = [
    "<script>alert(1)</script>",
    "a & b",
    "method_name",
    "=cmd|' /C calc'!A0",
    "100 % #1 {x} ~ ^ \\end{table} $x$",
    "[1]",
    "*",
    "\"quoted\" `x` 'y'",
    "{",
]


def compiled(folder: Path, *texts: str, packages: str = "booktabs") -> str:
    """What pdflatex logs of a two-column article with these tables."""
    body = "\n".join(texts)
    source = f"\\documentclass[twocolumn]{{article}}\n\\usepackage{{{packages}}}\n\\begin{{document}}\nText.\n{body}\n\\end{{document}}\n"
    (folder / "paper.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    log = (folder / "paper.log").read_text(errors="replace")
    assert done.returncode == 0, log[-3000:]
    return log


needs_pdflatex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")


@pytest.mark.slow
@needs_pdflatex
def test_it_compiles_and_fits_a_column(tmp_path: Path) -> None:
    """A table of a row's name and four scores; TeX complains of every box that is wider than its column."""
    log = compiled(tmp_path, to_latex(table()))
    assert "Overfull \\hbox" not in log and "Output written on paper.pdf (1 page" in log
    # The same table without what makes it narrow: the measure does find what is too wide.
    wide = re.sub(r"\$_\{\\pm ([\d.]+)\}\$", r" $\\pm$ \1", to_latex(table())).replace("\\footnotesize\n", "")
    assert "Overfull \\hbox" in compiled(tmp_path, wide)


@pytest.mark.slow
@needs_pdflatex
def test_names_of_others_compile(tmp_path: Path) -> None:
    """Each as the name of a row, as a setting's value and as a reason."""
    tables: list[Drawable] = [make_table([run(place, 0, 50.0, text) for place, text in enumerate(HOSTILE)])]
    for text in HOSTILE:
        failed = Record(study=text, trial=1, split=0, row="x", source="grid", params={}, status="failed", reason=text)
        tables.append(make_table([run(0, 0, 50.0, "y"), failed]))
    tables.append(trial_table([run(0, 0, 50.0, **dict.fromkeys("abc", text)) for text in HOSTILE[:1]], params=["a", "b"]))
    log = compiled(tmp_path, *map(to_latex, tables))
    assert "multiply defined" not in log and "Output written" in log


@pytest.mark.slow
@needs_pdflatex
def test_siunitx_compiles(tmp_path: Path) -> None:
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True, check=False).returncode:
        pytest.skip("LaTeX has no siunitx here")
    records = [record for record in paper_like() if record.params["data.labelled"] != 732]
    narrow = draw(make_table(records, columns="data.labelled"), "latex-siunitx")
    log = compiled(tmp_path, narrow, draw(trial_table(records), "latex-siunitx"), packages="booktabs,siunitx")
    assert r"\begin{table}" in narrow
    assert "Overfull \\hbox" not in log and "Output written" in log
