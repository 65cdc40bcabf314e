"""All contexts, in the order in which they were made; written down, so that ids outlive a crash."""

import asyncio
import json
import logging
import uuid
from typing import Any

from . import languages, messages
from .context import Closed, Context, Write
from .kernel import KernelError, Workshop
from .processes import end_orphans
from .settings import Settings

_log = logging.getLogger(__name__)

_LISTED_FROM_THE_START = ("python", "javascript")
MOST_CONTEXTS = 100


class UnknownLanguageError(Exception):
    """No kernel for it; the message is for the client."""


class TooManyContextsError(Exception):
    """The message is for the client."""


class Contexts:
    """Which contexts there are, and which one a language means by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workshop = Workshop(settings.run_dir)
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}
        """The context each language uses when a request names none."""
        self._record = settings.run_dir / "contexts.json"
        self._tasks: set[asyncio.Task[None]] = set()
        self.ready = False
        """Whether the default kernels answer."""
        self.problem = "the kernels are starting"

    async def open(self) -> None:
        """Take over what a server before this one left; the kernels start in the background."""
        run_dir = self._settings.run_dir
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        run_dir.chmod(0o700)
        if orphans := end_orphans(run_dir):
            _log.warning("%s kernels of an earlier server were ended", orphans)
        for path in run_dir.glob("kernel-*"):
            path.unlink(missing_ok=True)
        self._workshop.children.listen()
        self._read()
        for language in _LISTED_FROM_THE_START:
            if language not in self._defaults and self._find(language) is not None:
                self._defaults[language] = self._add(language, self._settings.workdir).id
        self._write()
        self._spawn(self._warm())

    async def close(self) -> None:
        for context in self._contexts.values():
            context.close()
        for task in self._tasks:
            task.cancel()
        self._workshop.children.close()

    def listing(self) -> list[dict[str, str]]:
        return [describe(context) for context in self._contexts.values()]

    def get(self, context_id: str) -> Context | None:
        """`default` is another name of the default Python context."""
        if context_id == "default":
            context_id = self._defaults.get("python", "")
        return self._contexts.get(context_id)

    async def default(self, language: str | None) -> Context:
        """The language's own context, made on first use.

        Raises UnknownLanguageError, TooManyContextsError, KernelError.
        """
        name = languages.normalize(language or "python")
        context = self._contexts.get(self._defaults.get(name, ""))
        if context is None:
            context = self._add(name, self._settings.workdir)
            self._defaults[name] = context.id
            self._write()
        await self._started(context)
        return context

    async def create(self, language: str | None, cwd: str | None) -> Context:
        """Raises UnknownLanguageError, TooManyContextsError, KernelError."""
        name = languages.normalize(language or "python")
        context = self._add(name, cwd or self._settings.workdir)
        self._write()
        await self._started(context)
        return context

    async def rehearse(self, write: Write) -> None:
        """Have each kernel go an execution's way once. Writes their lines, and failures."""
        for context in list(self._contexts.values()):
            if not context.has_kernel:
                continue
            try:
                await context.rehearse(write)
            except KernelError as error:
                await write(messages.encode(messages.error("KernelError", str(error))))
            except Closed:
                continue  # deleted meanwhile

    async def _started(self, context: Context) -> None:
        """Start the kernel if there never was one; a context whose kernel cannot start goes."""
        if context.has_kernel:
            return
        try:
            await context.ready()
        except Closed as error:
            raise KernelError("The context was deleted while it was being made") from error
        except BaseException:
            if not context.has_kernel and not context.lost_state:
                self.delete(context)
            raise

    def delete(self, context: Context) -> None:
        self._contexts.pop(context.id, None)
        self._write()
        context.close()

    def _add(self, name: str, cwd: str) -> Context:
        language = self._find(name)
        if language is None:
            known = sorted(n for n in languages.TABLE if self._find(n) is not None)
            raise UnknownLanguageError(
                f"Language '{name[:100]}' is not supported. Use one of: {', '.join(known)}"
            )
        if len(self._contexts) >= MOST_CONTEXTS:
            raise TooManyContextsError(
                f"There are {MOST_CONTEXTS} contexts already. Delete one to make another"
            )
        return self._place(str(uuid.uuid4()), language, cwd)

    def _place(self, context_id: str, language: languages.Language, cwd: str) -> Context:
        context = Context(context_id, language, cwd, self._workshop, self._settings.envd_port)
        self._contexts[context.id] = context
        return context

    def _find(self, name: str) -> languages.Language | None:
        return languages.find(name, self._workshop.installed())

    async def _warm(self) -> None:
        try:
            for name in self._settings.warm:
                await (await self.default(name)).rehearse(_unheard)
        except Exception as error:
            self.problem = str(error) or "a default context was deleted"
            _log.exception("a default kernel did not start")
            return
        self.ready = True

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the list on disk

    def _write(self) -> None:
        """Before a kernel is started and after one was ended: atomically, so never half."""
        data = {
            "contexts": [describe(context) for context in self._contexts.values()],
            "defaults": self._defaults,
        }
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps(data))
        temporary.rename(self._record)

    def _read(self) -> None:
        try:
            data = json.loads(self._record.read_text())
        except FileNotFoundError:
            return
        except ValueError:
            _log.exception("%s cannot be read: the contexts in it are gone", self._record)
            return
        for entry in data["contexts"]:
            language = self._find(entry["language"])
            if language is not None:
                self._place(entry["id"], language, entry["cwd"]).lost_state = True
        self._defaults = {
            name: context_id
            for name, context_id in data["defaults"].items()
            if context_id in self._contexts
        }


async def _unheard(_: bytes) -> None:
    """Nobody asked."""


def describe(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language.name, "cwd": context.cwd}
