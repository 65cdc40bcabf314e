"""Messages of filesystem.Filesystem: the files of a sandbox (spec/guest/filesystem.proto)."""

from enum import StrEnum

from alcove.wire.messages import Field, Kind, Message, Method

METADATA_XATTR_PREFIX = "user.e2b."
"""User metadata of a file is kept in extended attributes of this prefix (contract e2b 3.3)."""


class FileType(StrEnum):
    UNSPECIFIED = "FILE_TYPE_UNSPECIFIED"
    FILE = "FILE_TYPE_FILE"
    DIRECTORY = "FILE_TYPE_DIRECTORY"
    SYMLINK = "FILE_TYPE_SYMLINK"


class EventType(StrEnum):
    UNSPECIFIED = "EVENT_TYPE_UNSPECIFIED"
    CREATE = "EVENT_TYPE_CREATE"
    WRITE = "EVENT_TYPE_WRITE"
    REMOVE = "EVENT_TYPE_REMOVE"
    RENAME = "EVENT_TYPE_RENAME"
    CHMOD = "EVENT_TYPE_CHMOD"


# The order of the members is that of the numbers in the .proto file.
_FILE_TYPES = {member.value: number for number, member in enumerate(FileType)}
_EVENT_TYPES = {member.value: number for number, member in enumerate(EventType)}

_EMPTY = Message("Empty")

ENTRY = Message(
    "EntryInfo",
    (
        Field(1, "name", Kind.STRING),
        Field(2, "type", Kind.ENUM, values=_FILE_TYPES),
        Field(3, "path", Kind.STRING),
        Field(4, "size", Kind.INT64),
        Field(5, "mode", Kind.UINT32),
        Field(6, "permissions", Kind.STRING),
        Field(7, "owner", Kind.STRING),
        Field(8, "group", Kind.STRING),
        Field(9, "modifiedTime", Kind.TIMESTAMP),
        Field(10, "symlinkTarget", Kind.STRING, optional=True),
        Field(11, "metadata", Kind.STRING_MAP),
    ),
)

EVENT = Message(
    "FilesystemEvent",
    (
        Field(1, "name", Kind.STRING),
        Field(2, "type", Kind.ENUM, values=_EVENT_TYPES),
        Field(3, "entry", Kind.MESSAGE, ENTRY, optional=True),
    ),
)

_PATH = Field(1, "path", Kind.STRING)
_WATCHER_ID = Field(1, "watcherId", Kind.STRING)
_ENTRY_FIELD = Field(1, "entry", Kind.MESSAGE, ENTRY)

_WATCH_FIELDS = (
    _PATH,
    Field(2, "recursive", Kind.BOOL),
    Field(3, "includeEntry", Kind.BOOL),
    Field(4, "allowNetworkMounts", Kind.BOOL),
)

STAT = Method(
    "/filesystem.Filesystem/Stat",
    Message("StatRequest", (_PATH,)),
    Message("StatResponse", (_ENTRY_FIELD,)),
)

MAKE_DIR = Method(
    "/filesystem.Filesystem/MakeDir",
    Message("MakeDirRequest", (_PATH,)),
    Message("MakeDirResponse", (_ENTRY_FIELD,)),
)

MOVE = Method(
    "/filesystem.Filesystem/Move",
    Message("MoveRequest", (Field(1, "source", Kind.STRING), Field(2, "destination", Kind.STRING))),
    Message("MoveResponse", (_ENTRY_FIELD,)),
)

LIST_DIR = Method(
    "/filesystem.Filesystem/ListDir",
    Message("ListDirRequest", (_PATH, Field(2, "depth", Kind.UINT32))),
    Message("ListDirResponse", (Field(1, "entries", Kind.MESSAGE, ENTRY, repeated=True),)),
)

REMOVE = Method("/filesystem.Filesystem/Remove", Message("RemoveRequest", (_PATH,)), _EMPTY)

WATCH_DIR = Method(
    "/filesystem.Filesystem/WatchDir",
    Message("WatchDirRequest", _WATCH_FIELDS),
    Message(
        "WatchDirResponse",
        (
            Field(1, "start", Kind.MESSAGE, Message("WatchDirResponse.StartEvent"), oneof="event"),
            Field(2, "filesystem", Kind.MESSAGE, EVENT, oneof="event"),
            Field(
                3, "keepalive", Kind.MESSAGE, Message("WatchDirResponse.KeepAlive"), oneof="event"
            ),
        ),
    ),
)

CREATE_WATCHER = Method(
    "/filesystem.Filesystem/CreateWatcher",
    Message("CreateWatcherRequest", _WATCH_FIELDS),
    Message("CreateWatcherResponse", (_WATCHER_ID,)),
)

GET_WATCHER_EVENTS = Method(
    "/filesystem.Filesystem/GetWatcherEvents",
    Message("GetWatcherEventsRequest", (_WATCHER_ID,)),
    Message("GetWatcherEventsResponse", (Field(1, "events", Kind.MESSAGE, EVENT, repeated=True),)),
)

REMOVE_WATCHER = Method(
    "/filesystem.Filesystem/RemoveWatcher",
    Message("RemoveWatcherRequest", (_WATCHER_ID,)),
    _EMPTY,
)
