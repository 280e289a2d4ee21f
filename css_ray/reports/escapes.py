"""Text from a study file or a journal, as each format shows it: it commands no terminal, no spreadsheet and no TeX."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from css_ray.messages import printable


def one_line(text: str) -> str:
    """Text in one line, in which nothing commands a terminal."""
    return re.sub(r"[\n\t]", " ", printable(text))


def spreadsheet(value: Any) -> Any:
    """A value as a spreadsheet may read it: a text that it would take for a formula begins with an apostrophe, as OWASP
    recommends. Numbers stay numbers, also the negative ones.
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) and not _NUMBER.fullmatch(text) else text


_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def _command(letter: str) -> str:
    """LaTeX's command for a Greek letter: alpha for α, Delta for Δ."""
    word = unicodedata.name(letter).rpartition(" ")[2].replace("LAMDA", "LAMBDA")  # Unicode's spelling
    return word.capitalize() if letter.isupper() else word.lower()


# Capitals that look like Latin ones have no command.
_GREEK = {letter: _command(letter) for letter in "αβγδζηθικλμνξπρστυχψωΓΔΘΛΞΠΣΥΦΨΩ"}
_GREEK |= {"ε": "varepsilon", "φ": "varphi", "ς": "varsigma"}

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "`": r"\textasciigrave{}"},
    # At the beginning of a row these would be arguments of the \\ before it.
    **{"[": "{[}", "]": "{]}", "*": "{*}"},
    # In TeX's old fonts these are other signs.
    **{letter: f"${letter}$" for letter in "<>|"},
    **{"±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "−": "$-$", "→": r"$\to$"},
    **{"–": "--", "…": r"\ldots{}", "\N{MICRO SIGN}": r"$\mu$"},
}

_TO_LATEX = re.compile(
    rf"(?P<minus>(?<![\w.-])-(?=\d))|(?P<greek>[{''.join(_GREEK)}])(?:_(?P<index>[A-Za-z0-9]+))?"
    rf"|[{re.escape(''.join(_LATEX))}]"
)


def latex(text: str) -> str:
    """Text as LaTeX sets it; a Greek letter and its index, as in `δ_u`, are mathematics, and so is a minus."""

    def sign(found: re.Match[str]) -> str:
        if found["minus"]:
            return "$-$"
        if found["greek"]:
            index = f"_{{{found['index']}}}" if found["index"] else ""
            return f"$\\{_GREEK[found['greek']]}{index}$"
        return _LATEX[found[0]]

    return _TO_LATEX.sub(sign, one_line(text))
