"""Who asks, and what the application answers with: what every route is handed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from groundup.serving.api.errors import ApiError
from groundup.serving.api.registry import Registry, Served
from groundup.serving.api.settings import Settings
from groundup.serving.client import Client
from groundup.serving.models import Kind

if TYPE_CHECKING:
    from groundup.serving.telemetry import Telemetry

DIGEST = "groundup.digest"
"""The scope's entry with the digest of the model that answers."""


@dataclass(frozen=True)
class Api:
    """What the routes share."""

    client: Client
    registry: Registry
    settings: Settings
    telemetry: Telemetry | None = None
    meter_of: Callable[[str], Any] | None = None
    """A meter for work that is done for a key when its request is long over (`rates.Meter`); the caller closes it."""


@dataclass(frozen=True)
class Caller:
    """One request's sender, as the layers outside found out; a batch job speaks for whoever ordered it."""

    request_id: str
    key: str = ""
    """The id of the API key."""
    scopes: frozenset[str] = frozenset({"infer", "admin"})
    meter: Any = None
    """What counts the tokens of the key (`serving/limits.py`), where there is one."""
    priority: int = 0
    scope: MutableMapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> Caller:
        """The sender of an ASGI request. Without authentication in front, everyone may do everything."""
        principal = scope.get("groundup.key")
        request_id = scope.setdefault("groundup.request_id", uuid.uuid4().hex)
        if principal is None:
            return cls(request_id, scope=scope)
        return cls(
            request_id,
            key=principal.id,
            scopes=frozenset(principal.scopes),
            meter=scope.get("groundup.meter"),
            scope=scope,
        )

    def asks(self, api: Api, name: str, *kinds: Kind) -> Served:
        """The model that is asked. The answer then carries its digest. Raises ApiError as `Registry.get`."""
        found = api.registry.get(name, *kinds)
        self.scope[DIGEST] = found.digest
        self.scope.setdefault("groundup.audit", {})["model"] = found.name
        return found

    def require_admin(self) -> None:
        """Raise ApiError (403) for a key that may only ask models."""
        if "admin" not in self.scopes:
            fix = "use a key with the scope admin: groundup keys create --scope admin"
            raise ApiError(403, "insufficient_scope", "this route needs the scope admin", fix=fix)

    def deadline_s(self, api: Api, asked: float | None) -> float:
        """Seconds that this request may take."""
        return min(asked or api.settings.max_time, api.settings.max_time)


def now() -> int:
    """Seconds since 1970, as OpenAI's objects have them."""
    return int(time.time())
