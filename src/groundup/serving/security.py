"""Everything that stands in front of the application, in one order.

    Audit      gives each request an id, logs how it ended
    Edge       the head: size, host, CORS
    Auth       who it is, and what they may do
    Limits     body, nesting, time, rates, quotas
    the application

Nothing reaches an inner one that an outer one has not passed. `Guards` opens and closes what they keep.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from groundup.config import Section
from groundup.serving.audit import Audit, AuditLog, AuditSettings
from groundup.serving.auth import Auth
from groundup.serving.connections import ConnectionSettings
from groundup.serving.cookies import SessionSettings
from groundup.serving.edge import Edge, EdgeSettings
from groundup.serving.keys import ANYBODY, KeyRing
from groundup.serving.limits import Limits, LimitSettings
from groundup.serving.rates import Accounts, Meter
from groundup.serving.refusals import App, Refused
from groundup.serving.usage import Usage


class SecuritySettings(Section):
    """How a server is guarded. The defaults are for strangers; nothing here opens a route."""

    edge: EdgeSettings = EdgeSettings()
    sessions: SessionSettings = SessionSettings()
    limits: LimitSettings = LimitSettings()
    audit: AuditSettings = AuditSettings()
    connections: ConnectionSettings = ConnectionSettings()


class Guards:
    """The keys, sessions, accounts and log of one server. `close` writes what is still to be written.

    keys is the file of keys; None lets everybody in. usage is where used tokens are kept; None forgets them with
    the process. rejected is told the code of each refusal, complain what an administrator should know.
    Raises UserError for keys, a usage file or a log that cannot be opened.
    """

    def __init__(
        self,
        settings: SecuritySettings,
        *,
        keys: Path | None,
        usage: Path | None = None,
        bind: str = "127.0.0.1",
        rejected: Callable[[str], None] | None = None,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        self.settings, self.bind, self._rejected = settings, bind, rejected
        self.ring = KeyRing(keys, complain=complain) if keys is not None else None
        self.log = AuditLog(settings.audit, complain=complain) if settings.audit.path is not None else None
        self.usage = Usage(usage, complain=complain)
        limits = settings.limits
        self.accounts = Accounts(self.usage, limits.per_key, max_sockets=limits.max_sockets)

    def protect(self, app: App) -> App:
        """The application behind all guards."""
        settings = self.settings
        limited = Limits(app, self.accounts, settings.limits)
        known = Auth(limited, self.ring, sessions=settings.sessions, origins=settings.edge.origins)
        return Audit(Edge(known, settings.edge, bind=self.bind), self.log, rejected=self._rejected)

    def meter_of(self, key_id: str) -> Meter:
        """A meter for work that is done for a key after its request, such as a batch job. Close it yourself.

        Raises Refused (403) if the key has been revoked or has expired since.
        """
        principal = ANYBODY if self.ring is None else self.ring.principal(key_id)
        if principal is None:
            raise Refused(403, "key_ended", f"the key {key_id!r} this was ordered with is no longer good")
        return Meter(self.accounts.of(principal))

    def close(self) -> None:
        """Write the use of keys and the end of the log."""
        self.usage.close()
        if self.log is not None:
            self.log.close()
