"""The password of Amazon's registries, which is asked for with an access key.

One call, GetAuthorizationToken (https://docs.aws.amazon.com/AmazonECR/latest/APIReference/), signed
as https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html says.
"""

import base64
import hashlib
import hmac
import os
import re
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx

_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d\Z")
_TARGET = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
_ENDPOINT = "AWS_ENDPOINT_URL_ECR"
"""What Amazon's own tools take another address of the service from."""
_LIMIT_S = 30.0
_BODY = b"{}"


class EcrError(Exception):
    """Amazon gives no password; the message is for the template's author."""


async def ecr_password(key_id: str, secret: str, region: str) -> str:
    """Raises EcrError."""
    if not _REGION.match(region):
        raise EcrError(f"{region[:40]!r} is not the name of an AWS region")
    endpoint = os.environ.get(_ENDPOINT) or f"https://api.ecr.{region}.amazonaws.com"
    host = urlsplit(endpoint).netloc
    headers = signed_headers(key_id, secret, region, host, datetime.now(UTC))
    try:
        async with httpx.AsyncClient(timeout=_LIMIT_S) as http:
            answer = await http.post(endpoint.rstrip("/") + "/", content=_BODY, headers=headers)
    except httpx.HTTPError as error:
        raise EcrError(f"{host} does not answer: {error!r}") from error
    if answer.status_code != 200:
        raise EcrError(f"{host} refuses the access key ({answer.status_code}): {answer.text[:300]}")
    try:
        token = answer.json()["authorizationData"][0]["authorizationToken"]
        return base64.b64decode(token).decode().partition(":")[2]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EcrError(f"the answer of {host} has no token") from error


def signed_headers(
    key_id: str, secret: str, region: str, host: str, at: datetime
) -> dict[str, str]:
    """Headers of the call, with its signature (version 4)."""
    moment, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": moment,
        "x-amz-target": _TARGET,
    }
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(_BODY).hexdigest()}"
    scope = f"{day}/{region}/ecr/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = b"AWS4" + secret.encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    credential = f"Credential={key_id}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return headers | {"authorization": f"AWS4-HMAC-SHA256 {credential}"}
