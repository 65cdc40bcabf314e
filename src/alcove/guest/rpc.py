"""The Connect RPC server: finds the method, decodes messages, encodes answers and errors.

Methods get and give plain dicts in the shape of wire/messages.py and raise ConnectError. Both
codecs, gzip, time limits of streams and error bodies are dealt with here (contract e2b 3.4).
"""

import binascii
import logging
from asyncio import CancelledError, current_task, get_running_loop
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from alcove.guest import codecs
from alcove.guest.codecs import Codec
from alcove.guest.environment import Environment
from alcove.guest.http import BodyTruncatedError, Handler, HttpError, Request, Response
from alcove.guest.users import UnknownUserError, User
from alcove.wire import connect
from alcove.wire.connect import ConnectError, EnvelopeDecoder
from alcove.wire.errors import Code
from alcove.wire.messages import Message as MessageType
from alcove.wire.messages import Method

_log = logging.getLogger(__name__)

Message = dict[str, Any]

DEFAULT_KEEPALIVE_S = 90
_MAX_KEEPALIVE_S = 3600
# Smaller messages grow or hardly shrink.
_GZIP_FROM_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows of its caller besides the message."""

    environment: Environment
    headers: list[tuple[str, str]]
    username: str | None
    timeout_ms: int | None
    """Connect-Timeout-Ms; None: no limit."""
    keepalive_s: int

    def user(self) -> User:
        """The user the caller asks for. Raises ConnectError UNAUTHENTICATED."""
        try:
            return self.environment.user(self.username)
        except UnknownUserError as error:
            raise ConnectError(
                Code.UNAUTHENTICATED, f"invalid username: '{error.args[0]}'"
            ) from error


UnaryMethod = Callable[[Message, Call], Awaitable[Message]]
ServerStreamMethod = Callable[[Message, Call], AsyncGenerator[Message, None]]
ClientStreamMethod = Callable[[AsyncIterator[Message], Call], Awaitable[Message]]


class Rpc:
    """The methods of the guest. `routes` are mounted by the app."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._routes: list[tuple[str, str, Handler]] = []

    @property
    def routes(self) -> list[tuple[str, str, Handler]]:
        return self._routes

    def unary(self, method: Method, fn: UnaryMethod) -> None:
        async def handle(request: Request) -> Response:
            return await self._unary(method, fn, request)

        self._routes.append(("POST", method.path, handle))

    def server_stream(self, method: Method, fn: ServerStreamMethod) -> None:
        """`fn` is an async generator; it is closed when the client goes away."""

        async def handle(request: Request) -> Response:
            return await self._server_stream(method, fn, request)

        self._routes.append(("POST", method.path, handle))

    def client_stream(self, method: Method, fn: ClientStreamMethod) -> None:
        async def handle(request: Request) -> Response:
            return await self._client_stream(method, fn, request)

        self._routes.append(("POST", method.path, handle))

    async def _unary(self, method: Method, fn: UnaryMethod, request: Request) -> Response:
        codec = _codec(request, codecs.UNARY_TYPES)
        try:
            call = self._call(request)
            message = codec.decode(method.request, await _unary_body(request))
            answer = codec.write(method.response, await fn(message, call))
        except ConnectError as error:
            return _unary_error(error)
        except (HttpError, BodyTruncatedError):
            raise
        except Exception:
            _log.exception("%s failed", method.path)
            return _unary_error(_internal())
        headers = [("content-type", f"application/{codec.name}")]
        if len(answer) >= _GZIP_FROM_BYTES and codecs.accepts_gzip(
            request.header("accept-encoding")
        ):
            headers.append(("content-encoding", "gzip"))
            answer = codecs.gzip(answer)
        return Response(200, headers, answer)

    async def _server_stream(
        self, method: Method, fn: ServerStreamMethod, request: Request
    ) -> Response:
        codec = _codec(request, codecs.STREAM_TYPES)
        # The request is read before the answer begins: clients of HTTP/1.1 stop sending their body
        # once they see a response.
        try:
            call = self._call(request)
            message = await _only_message(_messages(request, codec, method.request))
        except ConnectError as error:
            return _stream_response(method, codec, request, _failing(error))
        return _stream_response(method, codec, request, _until_deadline(fn(message, call), call))

    async def _client_stream(
        self, method: Method, fn: ClientStreamMethod, request: Request
    ) -> Response:
        codec = _codec(request, codecs.STREAM_TYPES)
        try:
            call = self._call(request)
            answer = await fn(_messages(request, codec, method.request), call)
        except ConnectError as error:
            return _stream_response(method, codec, request, _failing(error))
        return _stream_response(method, codec, request, _single(answer))

    def _call(self, request: Request) -> Call:
        return Call(
            environment=self._environment,
            headers=request.headers,
            username=_basic_username(request.header("authorization")),
            timeout_ms=connect.parse_timeout_ms(request.header("connect-timeout-ms")),
            keepalive_s=_keepalive_s(request.header("keepalive-ping-interval")),
        )


async def _until_deadline(
    source: AsyncGenerator[Message, None], call: Call
) -> AsyncGenerator[Message, None]:
    alarm = _Alarm(call.timeout_ms)
    try:
        while (answer := await alarm.next_of(source)) is not None:
            yield answer
    except TimeoutError as error:
        raise ConnectError(
            Code.DEADLINE_EXCEEDED, f"the time limit of {call.timeout_ms} ms has passed"
        ) from error
    finally:
        alarm.stop()
        await source.aclose()


class _Alarm:
    """A time limit over several waits of one task, whatever it does between them.

    asyncio.timeout would have to be armed for each wait, at several system calls apiece.
    """

    def __init__(self, timeout_ms: int | None) -> None:
        self._task = current_task()
        self._waiting = self._rung = False
        self._timer = None
        if timeout_ms is not None:
            self._timer = get_running_loop().call_later(timeout_ms / 1000, self._ring)

    async def next_of(self, source: AsyncIterator[Message]) -> Message | None:
        """None at the end. Raises TimeoutError once the time has passed."""
        if self._rung:
            raise TimeoutError
        self._waiting = True
        try:
            return await anext(source, None)
        except CancelledError:
            # Somebody else may have cancelled the task too; then that is what counts.
            if self._rung and self._task is not None and self._task.uncancel() == 0:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = False

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._rung = True
        if self._waiting and self._task is not None:
            self._task.cancel()


async def _single(answer: Message) -> AsyncGenerator[Message, None]:
    yield answer


async def _failing(error: ConnectError) -> AsyncGenerator[Message, None]:
    raise error
    yield {}  # makes this a generator


def _stream_response(
    method: Method, codec: Codec, request: Request, messages: AsyncGenerator[Message, None]
) -> Response:
    packed = codecs.accepts_gzip(request.header("connect-accept-encoding"))
    headers = [("content-type", f"application/connect+{codec.name}")]
    if packed:
        headers.append(("connect-content-encoding", "gzip"))
    return Response(200, headers, _envelopes(method, codec, messages, packed=packed))


async def _envelopes(
    method: Method, codec: Codec, messages: AsyncGenerator[Message, None], *, packed: bool
) -> AsyncGenerator[bytes, None]:
    """A response body: each message in its envelope, then the end of the stream."""
    try:
        async for message in messages:
            payload, flags = codec.write(method.response, message), 0
            if packed and len(payload) >= _GZIP_FROM_BYTES:
                payload, flags = codecs.gzip(payload), connect.COMPRESSED
            yield connect.encode_envelope(payload, flags)
        yield connect.encode_end_stream()
    except ConnectError as error:
        yield connect.encode_end_stream(error)
    except Exception:
        _log.exception("%s failed", method.path)
        yield connect.encode_end_stream(_internal())
    finally:
        await messages.aclose()


async def _messages(
    request: Request, codec: Codec, message: MessageType
) -> AsyncGenerator[Message, None]:
    """The messages of a request stream, as they arrive."""
    encoding = request.header("connect-content-encoding")
    decoder = EnvelopeDecoder()
    async for chunk in request.body:
        for envelope in decoder.feed(chunk):
            if envelope.ends_stream:
                return
            payload = envelope.payload
            if envelope.compressed:
                payload = _unpack(payload, encoding)
            yield codec.decode(message, payload)
    decoder.finish()


async def _only_message(messages: AsyncGenerator[Message, None]) -> Message:
    first = await anext(messages, None)
    if first is None:
        raise ConnectError(Code.INVALID_ARGUMENT, "the request has no message; send exactly one")
    if await anext(messages, None) is not None:
        raise ConnectError(Code.INVALID_ARGUMENT, "the request has several messages; send one")
    return first


async def _unary_body(request: Request) -> bytes:
    body = await request.read(connect.MAX_MESSAGE_BYTES)
    encoding = request.header("content-encoding")
    return body if encoding in {None, "identity"} else _unpack(body, encoding)


def _unpack(data: bytes, encoding: str | None) -> bytes:
    if encoding != "gzip":
        raise ConnectError(
            Code.UNIMPLEMENTED, f"unknown compression '{encoding}'; supported: gzip, identity"
        )
    return codecs.gunzip(data)


def _unary_error(error: ConnectError) -> Response:
    return Response(
        error.http_status, [("content-type", "application/json")], connect.encode_error(error)
    )


def _internal() -> ConnectError:
    return ConnectError(
        Code.INTERNAL, "the sandbox agent failed to serve this call; its log has the details"
    )


def _codec(request: Request, known: dict[str, Codec]) -> Codec:
    content_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    try:
        return known[content_type]
    except KeyError:
        raise HttpError(
            415, f"content type '{content_type}' is not one of {', '.join(known)}"
        ) from None


def _basic_username(header: str | None) -> str | None:
    """The name in an Authorization header; the password plays no part."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name = binascii.a2b_base64(value.strip()).decode().partition(":")[0]
    except ValueError as error:
        raise ConnectError(
            Code.UNAUTHENTICATED, "the Authorization header is not valid Basic authentication"
        ) from error
    return name or None


def _keepalive_s(header: str | None) -> int:
    if header is None or not (header.isascii() and header.isdecimal() and len(header) < 10):
        return DEFAULT_KEEPALIVE_S
    return min(int(header) or DEFAULT_KEEPALIVE_S, _MAX_KEEPALIVE_S)
