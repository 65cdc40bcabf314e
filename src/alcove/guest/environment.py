"""What this sandbox has been told about itself through POST /init.

One instance lives as long as the agent and is passed to everything that needs it. Before the first
/init there is no token and commands run as root.
"""

from dataclasses import dataclass, field

from alcove.guest import users

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class Environment:
    """The guest's settings; /init changes them in place."""

    env_vars: dict[str, str] = field(default_factory=dict)
    access_token: str | None = None
    default_user: str = "root"
    default_workdir: str | None = None
    sandbox_id: str | None = None
    template_id: str | None = None
    lifecycle_id: str | None = None
    boots: int = 0
    """How often the sandbox was rebooted."""
    max_processes: int | None = None
    """RLIMIT_NPROC of users other than root; None leaves it as it is."""
    path: str = DEFAULT_PATH

    def user(self, name: str | None) -> users.User:
        """The user a request asks for, or the default one. Raises UnknownUserError."""
        return users.lookup(name or self.default_user)

    def resolve(self, path: str, user: users.User) -> str:
        """An absolute path for what a client sent. Raises InvalidPathError."""
        return users.resolve_path(path, user, self.default_workdir)

    def process_env(self, user: users.User, extra: dict[str, str]) -> dict[str, str]:
        """The whole environment of a new process; later sources win (contract e2b 3.6)."""
        return {
            "PATH": self.path,
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            **self.env_vars,
            **extra,
        }
