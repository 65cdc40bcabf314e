"""What the User-Agent of an SDK says of the build it expects (contract e2b 9.6)."""

import re

_SDK = re.compile(r"e2b-(?:python|js)-sdk/(\d{1,6})\.(\d{1,6})\.")
_IMPLICIT_USER = (2, 3)


def has_plain_user(user_agent: str) -> bool:
    """Whether it comes from an SDK whose builds have no implicit USER and WORKDIR."""
    match = _SDK.search(user_agent)
    return match is not None and (int(match[1]), int(match[2])) < _IMPLICIT_USER
