"""The web page at /: one file, that may do nothing but show itself and ask this server."""

import base64
import functools
import hashlib
import pathlib
import re

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

FILE = pathlib.Path(__file__).with_name('page.html')


@functools.cache
def _page() -> tuple[str, str]:
    """The page, and the policy that lets a browser run what is in it and nothing else."""
    text = FILE.read_text()

    def digests(tag: str) -> str:
        parts = re.findall(rf'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
        return ' '.join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in parts
        )

    policy = (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; "
        "connect-src 'self'; img-src data: blob:; media-src data: blob:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


async def answer(request: Request) -> Response:
    """The endpoint."""
    text, policy = _page()
    headers = {'Content-Security-Policy': policy, 'Referrer-Policy': 'no-referrer'}
    return HTMLResponse(text, headers=headers)
