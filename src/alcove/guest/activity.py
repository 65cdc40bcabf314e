"""GET /activity: whether somebody follows the sandbox. The node asks before it calls it idle."""

from collections.abc import Callable

from alcove.guest.app import Route
from alcove.guest.http import Request, Response


def routes(open_streams: Callable[[], int]) -> list[Route]:
    """`open_streams` counts the answers that are being streamed: commands, watched directories."""

    async def activity(_: Request) -> Response:
        return Response.json({"streams": open_streams()})

    return [("GET", "/activity", activity)]
