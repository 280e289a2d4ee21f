"""What is wrong with a study, all of it together."""

from __future__ import annotations

from collections.abc import Sequence

from css_ray.secrets import shown, without_secrets


class StudyError(ValueError):
    """A study file, or what it asks for, is wrong. `problems` holds one sentence each, with the path in the file."""

    def __init__(self, problems: Sequence[str], source: str = "the study") -> None:
        # A problem quotes the value that is wrong, which may be a URL with a secret.
        self.problems = tuple(map(without_secrets, problems))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{count} in {shown(source)}:\n" + "\n".join(f"  {problem}" for problem in self.problems))
