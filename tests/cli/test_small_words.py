"""Sentences that several commands say in the same way."""

from __future__ import annotations

import pytest

from css_ray.execution.nodes import _short
from css_ray.records import score_text
from css_ray.secrets import BY_CLUSTER, credentials_text
from tests.cli.made_up import refused

KEY = "s3://AKIA:s3cret@bucket/x"


@pytest.mark.parametrize(
    ("score", "text"),
    [
        ((68.094, 4.891), "68.09 ± 4.89"),
        ((68.094, None), "68.09"),
        ((None, None), "–"),
        ((66.0, None, 1, 3), "66.00 (n=1 of 3)"),
        ((66.0, 1.0, 3, 3), "66.00 ± 1.00"),
        ((None, None, 0, 3), "– (n=0 of 3)"),
        ((None, None, 0, 0), "– (n=0 of 0)"),
    ],
)
def test_a_score(score: tuple[float | None, ...], text: str) -> None:
    assert score_text(*score) == text  # type: ignore[arg-type]


def test_credentials_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray import Study
    from css_ray.execution.jobs import Cluster
    from css_ray.study.definition import StudyError, parse
    from tests.cli.made_up import SPEC

    sentence = (
        "s3://bucket/x contains credentials (a user or a password); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
        "environment, or use a role of the machine"
    )
    assert credentials_text(KEY) == sentence
    assert credentials_text("s3://bucket/x") == credentials_text("runs") == ""
    for command in (["study", "list"], ["study", "table", "small"], ["train", "small"]):
        said = refused(*command, "--storage", KEY)
        assert said.endswith(f"--storage: {sentence}\n") and "s3cret" not in said
    with pytest.raises(ValueError, match="storage: s3://bucket/x contains credentials"):
        Study(parse(SPEC), KEY)
    there = "they would appear in the cluster's logs; set them there, in the environment that Ray is started in"
    assert there == BY_CLUSTER
    said = refused("cluster", "check", "--address", "http://head:8265", "--storage", KEY)
    assert f"--storage: s3://bucket/x contains credentials (a user or a password); {there}" in said and "s3cret" not in said
    cluster = object.__new__(Cluster)
    with pytest.raises(StudyError, match=r"--set tracking\.uri: http://mlflow contains credentials") as raised:
        cluster.submit("small", "/mnt/runs", ["tracking.uri=http://ann:s3cret@mlflow"])
    assert "s3cret" not in str(raised.value)


def test_an_unknown_command_and_an_error_without_a_word() -> None:
    assert "no command 'stduy' (did you mean study?)" in refused("stduy")
    assert _short(RuntimeError("a\n  b: c \n")) == "b: c" and _short(RuntimeError()) == "RuntimeError (no message)"
