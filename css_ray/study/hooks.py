"""Reports that a study ended, to a command of the user and to a webhook. Both are bounded in time."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from css_ray.messages import os_error_text
from css_ray.secrets import shown

COMMAND_SECONDS = 60.0
"""How long the command may take before it is killed with all that it started."""

WEBHOOK_SECONDS = 10.0
"""How long one attempt of the webhook may take; there are two."""

_PAUSE_SECONDS = 1.0


class HookError(RuntimeError):
    """A command or webhook failed; the study is not affected."""


def check_webhook(url: str) -> None:
    """Raise ValueError if `url` is not an http or https URL."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("the webhook is not an http:// or https:// URL with a host; it is not shown: it may contain a secret")


def webhook_name(url: str) -> str:
    """The server of `url` alone: the path of a webhook often is its password."""
    return "://".join(urlsplit(shown(url))[:2])


def run_command(command: str, summary: Mapping[str, Any], storage: str, *, seconds: float = COMMAND_SECONDS) -> None:
    """Run `command` by the shell, with `summary` (of `css_ray.Study.summary`) as JSON on its standard input.

    Its environment also has CSS_RAY_STUDY, CSS_RAY_STATUS, CSS_RAY_STORAGE and CSS_RAY_BEST (`68.09 ± 4.89`, empty if no trial
    finished). Raises HookError if it cannot be run, exits with another status than 0, or takes longer than `seconds`.
    """
    environment = {
        "CSS_RAY_STUDY": str(summary["study"]),
        "CSS_RAY_STATUS": str(summary["status"]),
        "CSS_RAY_STORAGE": storage,
        "CSS_RAY_BEST": str(summary["best"] or ""),
    }
    try:
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.PIPE, env=os.environ | environment, start_new_session=True
        )
    except (OSError, ValueError) as error:
        reason = os_error_text(error, "run") if isinstance(error, OSError) else str(error)
        raise HookError(f"the command of --on-finish could not be run: {reason}") from None
    try:
        process.communicate(json.dumps(summary).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        raise HookError(f"the command of --on-finish took longer than {seconds:g} s and was killed") from None
    finally:
        if process.returncode is None:
            # The whole session of the shell: what it started would outlive it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise HookError(f"the command of --on-finish exited with status {process.returncode}")


def post(url: str, summary: Mapping[str, Any], *, seconds: float = WEBHOOK_SECONDS) -> None:
    """POST `summary` (of `css_ray.Study.summary`) as JSON to `url`; if that fails, once more.

    A refusal (status 300 to 499, except 429) is not tried again. Raises ValueError as `check_webhook` does, and HookError if
    the server did not accept it; the message names the server, not the URL.
    """
    check_webhook(url)
    body = json.dumps(summary).encode()
    for attempt in (1, 2):
        reason, again = _try(url, body, seconds)
        if reason is None:
            return
        if not again:
            break
        if attempt == 1:
            time.sleep(_PAUSE_SECONDS)
    raise HookError(f"the webhook at {webhook_name(url)} did not accept the summary: {reason}")


def _try(url: str, body: bytes, seconds: float) -> tuple[str | None, bool]:
    """One POST: why it failed, None if it did not, and whether another attempt makes sense."""
    answers: list[tuple[str | None, bool]] = []
    # A thread of its own: the time limit of a socket starts again with every byte, and a name look-up has none.
    thread = threading.Thread(target=lambda: answers.append(_post_once(url, body, seconds)), daemon=True, name="webhook")
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else (f"no answer in {seconds:g} s", True)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without the summary; it is better to report that the address is wrong."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _post_once(url: str, body: bytes, seconds: float) -> tuple[str | None, bool]:
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "css-ray"}
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answered {error.code}", error.code == 429 or error.code >= 500
    except urllib.error.URLError as error:
        return (error.reason.strerror if isinstance(error.reason, OSError) else None) or f"{error.reason}", True
    except TimeoutError:
        return f"no answer in {seconds:g} s", True
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The text of such an error may contain the URL.
        return type(error).__name__, True
