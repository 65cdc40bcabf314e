"""Messages of process.Process: what runs in a sandbox (spec/guest/process.proto)."""

from alcove.wire.messages import Field, Kind, Message, Method

SIGNALS = {"SIGNAL_UNSPECIFIED": 0, "SIGNAL_SIGKILL": 9, "SIGNAL_SIGTERM": 15}

_EMPTY = Message("Empty")

PTY_SIZE = Message("PTY.Size", (Field(1, "cols", Kind.UINT32), Field(2, "rows", Kind.UINT32)))
PTY = Message("PTY", (Field(1, "size", Kind.MESSAGE, PTY_SIZE),))

CONFIG = Message(
    "ProcessConfig",
    (
        Field(1, "cmd", Kind.STRING),
        Field(2, "args", Kind.STRING, repeated=True),
        Field(3, "envs", Kind.STRING_MAP),
        Field(4, "cwd", Kind.STRING, optional=True),
    ),
)

SELECTOR = Message(
    "ProcessSelector",
    (
        Field(1, "pid", Kind.UINT32, oneof="selector"),
        Field(2, "tag", Kind.STRING, oneof="selector"),
    ),
)

INPUT = Message(
    "ProcessInput",
    (
        Field(1, "stdin", Kind.BYTES, oneof="input"),
        Field(2, "pty", Kind.BYTES, oneof="input"),
    ),
)

EVENT = Message(
    "ProcessEvent",
    (
        Field(
            1,
            "start",
            Kind.MESSAGE,
            Message("ProcessEvent.StartEvent", (Field(1, "pid", Kind.UINT32),)),
            oneof="event",
        ),
        Field(
            2,
            "data",
            Kind.MESSAGE,
            Message(
                "ProcessEvent.DataEvent",
                (
                    Field(1, "stdout", Kind.BYTES, oneof="output"),
                    Field(2, "stderr", Kind.BYTES, oneof="output"),
                    Field(3, "pty", Kind.BYTES, oneof="output"),
                ),
            ),
            oneof="event",
        ),
        Field(
            3,
            "end",
            Kind.MESSAGE,
            Message(
                "ProcessEvent.EndEvent",
                (
                    Field(1, "exitCode", Kind.SINT32),
                    Field(2, "exited", Kind.BOOL),
                    Field(3, "status", Kind.STRING),
                    Field(4, "error", Kind.STRING, optional=True),
                ),
            ),
            oneof="event",
        ),
        Field(4, "keepalive", Kind.MESSAGE, Message("ProcessEvent.KeepAlive"), oneof="event"),
    ),
)

_PROCESS = Field(1, "process", Kind.MESSAGE, SELECTOR)
_EVENT_ANSWER = Message("EventResponse", (Field(1, "event", Kind.MESSAGE, EVENT),))

LIST = Method(
    "/process.Process/List",
    Message("ListRequest"),
    Message(
        "ListResponse",
        (
            Field(
                1,
                "processes",
                Kind.MESSAGE,
                Message(
                    "ProcessInfo",
                    (
                        Field(1, "config", Kind.MESSAGE, CONFIG),
                        Field(2, "pid", Kind.UINT32),
                        Field(3, "tag", Kind.STRING, optional=True),
                    ),
                ),
                repeated=True,
            ),
        ),
    ),
)

KEEP_HEADER = "alcove-keep-running"
"""With the value `true` on Start, ours: the agent starts the process again whenever it ends."""

START = Method(
    "/process.Process/Start",
    Message(
        "StartRequest",
        (
            Field(1, "process", Kind.MESSAGE, CONFIG),
            Field(2, "pty", Kind.MESSAGE, PTY),
            Field(3, "tag", Kind.STRING, optional=True),
            Field(4, "stdin", Kind.BOOL, optional=True),
        ),
    ),
    _EVENT_ANSWER,
)

CONNECT = Method("/process.Process/Connect", Message("ConnectRequest", (_PROCESS,)), _EVENT_ANSWER)

UPDATE = Method(
    "/process.Process/Update",
    Message("UpdateRequest", (_PROCESS, Field(2, "pty", Kind.MESSAGE, PTY))),
    _EMPTY,
)

SEND_INPUT = Method(
    "/process.Process/SendInput",
    Message("SendInputRequest", (_PROCESS, Field(2, "input", Kind.MESSAGE, INPUT))),
    _EMPTY,
)

STREAM_INPUT = Method(
    "/process.Process/StreamInput",
    Message(
        "StreamInputRequest",
        (
            Field(
                1,
                "start",
                Kind.MESSAGE,
                Message("StreamInputRequest.StartEvent", (_PROCESS,)),
                oneof="event",
            ),
            Field(
                2,
                "data",
                Kind.MESSAGE,
                Message("StreamInputRequest.DataEvent", (Field(2, "input", Kind.MESSAGE, INPUT),)),
                oneof="event",
            ),
            Field(
                3,
                "keepalive",
                Kind.MESSAGE,
                Message("StreamInputRequest.KeepAlive"),
                oneof="event",
            ),
        ),
    ),
    _EMPTY,
)

SEND_SIGNAL = Method(
    "/process.Process/SendSignal",
    Message("SendSignalRequest", (_PROCESS, Field(2, "signal", Kind.ENUM, values=SIGNALS))),
    _EMPTY,
)

CLOSE_STDIN = Method(
    "/process.Process/CloseStdin", Message("CloseStdinRequest", (_PROCESS,)), _EMPTY
)
