"""How fast and how much each key may use: requests and tokens a minute, requests at once, tokens a day and a month.

Rates are token buckets: a bucket holds one minute's worth and refills steadily, so a key that was silent may
send a minute's worth at once. Tokens are reserved before they are computed, as prompt plus the longest answer
asked for, and settled at what they came to: a key cannot overrun its rate by asking many long answers at once,
and is not billed for answers that ended early.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from groundup.serving.keys import KeyLimits, Principal
from groundup.serving.refusals import Refused
from groundup.serving.usage import Usage, day_of, month_of

BUSY_RETRY_S = 1.0
NO_RETRY = {"x-should-retry": "false"}
"""What OpenAI's client libraries read before they send a refused request again."""


class Bucket:
    """Holds up to `per_minute`, refilled by that much a minute. Below zero when more was used than reserved."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.size = self.level = float(per_minute)
        self._clock, self._filled = clock, clock()

    def resize(self, per_minute: int) -> None:
        """Take another size, and keep what has been used."""
        self.refill()
        self.level += per_minute - self.size
        self.size = float(per_minute)

    def refill(self) -> None:
        """Add what has come in since the last look."""
        now = self._clock()
        self.level = min(self.size, self.level + max(0.0, now - self._filled) * self.size / 60)
        self._filled = now

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` is there; 0 if it is. Infinite if the bucket is too small for it."""
        self.refill()
        if amount > self.size:
            return float("inf")
        return max(0.0, amount - self.level) * 60 / self.size

    def take(self, amount: float) -> None:
        """Take so much; a negative amount gives it back."""
        self.refill()
        self.level = min(self.size, self.level - amount)


class Account:
    """What one key has in use now."""

    def __init__(self, key: str, usage: Usage, *, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self.key, self.usage, self._clock, self._now = key, usage, clock, now
        self.limits = KeyLimits()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.running = self.sockets = self.reserved = 0

    def apply(self, limits: KeyLimits) -> None:
        """Take these limits, which an administrator may have changed since the last request."""
        if limits == self.limits:
            return
        self.requests = self._bucket(self.requests, limits.requests_per_minute)
        self.tokens = self._bucket(self.tokens, limits.tokens_per_minute)
        self.limits = limits

    def _bucket(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        bucket.resize(per_minute)
        return bucket

    def quota_end_s(self, tokens: int) -> float | None:
        """None if so many more tokens are within the quota, else seconds until the period ends that is spent."""
        now = self._now()
        quotas = ((day_of(now), self.limits.tokens_per_day), (month_of(now), self.limits.tokens_per_month))
        spent = [
            period
            for period, quota in quotas
            if quota is not None and self.usage.used(period, self.key) + self.reserved + tokens > quota
        ]
        return _end_of(spent[-1]) - now if spent else None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """How much is left, under OpenAI's names; nothing for what is not limited."""
        found = []
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                bucket.refill()
                reset_s = (bucket.size - bucket.level) * 60 / bucket.size
                values = (f"{bucket.size:.0f}", f"{max(0, int(bucket.level))}", show_wait(reset_s))
                for word, value in zip(("limit", "remaining", "reset"), values, strict=True):
                    found.append((f"x-ratelimit-{word}-{name}".encode(), value.encode()))
        return found


class Meter:
    """The tokens of one request, in `scope["groundup.meter"]`.

    The application calls `reserve(prompt + longest answer)` before it starts the work, and `settle` when it
    knows what it came to, also when the work was cut short. What is reserved and never settled is billed in
    full if the request was answered, and given back if it failed. `refusal` is what `reserve` raised.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.prompt_tokens = self.completion_tokens = self.reserved = 0
        self.is_settled = self.is_closed = False
        self.refusal: Refused | None = None

    def reserve(self, tokens: int) -> None:
        """Set so many tokens aside. Raises Refused (429) if the rate or the quota does not allow them now."""
        assert tokens >= 0, "tokens are counted from zero"
        self.refusal = refuse_rate(self.account, tokens) or refuse_quota(self.account, tokens)
        if self.refusal is not None:
            raise self.refusal
        if self.account.tokens is not None:
            self.account.tokens.take(tokens)
        self.account.reserved += tokens
        self.reserved += tokens

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Bill what was used in place of what was reserved. Calls add up: one for each of several answers."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.is_settled = True

    def fork(self) -> Meter:
        """A meter of the same key for work that outlives its request, such as a batch job. Close it yourself."""
        return Meter(self.account)

    def close(self, *, failed: bool = False) -> None:
        """End the reservation. Called by the server when the request ends; again, it does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        used = self.prompt_tokens + self.completion_tokens
        if not self.is_settled and not failed:
            used = self.reserved
        if self.account.tokens is not None:
            self.account.tokens.take(used - self.reserved)
        self.account.reserved -= self.reserved
        if used:
            self.account.usage.add(self.account.key, used)


class Accounts:
    """The accounts of all keys. `defaults` are the limits of keys that have none of their own."""

    def __init__(
        self,
        usage: Usage,
        defaults: KeyLimits,
        *,
        max_sockets: int,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.usage, self.defaults, self.max_sockets, self._clock, self._now = usage, defaults, max_sockets, clock, now
        self._accounts: dict[str, Account] = {}

    def of(self, principal: Principal) -> Account:
        """The account of a key, with the limits it has now."""
        account = self._accounts.get(principal.id)
        if account is None:
            account = self._accounts[principal.id] = Account(principal.id, self.usage, clock=self._clock, now=self._now)
        account.apply(principal.limits.over(self.defaults))
        return account

    @contextmanager
    def request(self, principal: Principal) -> Iterator[Meter]:
        """A request's place and meter for the block. Raises Refused (429) if the key has none left."""
        account = self.of(principal)
        refusal = refuse_concurrency(account) or refuse_requests(account)
        if refusal is not None:
            raise refusal
        if account.requests is not None:
            account.requests.take(1)
        account.running += 1
        try:
            yield Meter(account)
        finally:
            account.running -= 1

    @contextmanager
    def socket(self, principal: Principal) -> Iterator[None]:
        """A websocket's place for the block. Raises Refused (429) if the key holds too many."""
        account = self.of(principal)
        refusal = refuse_sockets(account, self.max_sockets)
        if refusal is not None:
            raise refusal
        account.sockets += 1
        try:
            yield
        finally:
            account.sockets -= 1


# Each rule stands alone, so that a test can switch it off and see what it was for.


def refuse_requests(account: Account) -> Refused | None:
    """A refusal if the key has sent its requests for now."""
    wait_s = account.requests.wait_s(1) if account.requests is not None else 0.0
    if not wait_s:
        return None
    what = f"this key may send {account.limits.requests_per_minute} requests a minute and has sent them"
    return _limited("requests", what, account, wait_s)


def refuse_concurrency(account: Account) -> Refused | None:
    """A refusal if as many requests of the key are running as may."""
    most = account.limits.concurrent
    if most is None or account.running < most:
        return None
    what = f"{most} requests of this key are being answered, as many as may be at once"
    return _limited("concurrent_requests", what, account, BUSY_RETRY_S)


def refuse_sockets(account: Account, most: int) -> Refused | None:
    """A refusal if the key holds as many websockets as it may."""
    if account.sockets < most:
        return None
    return _limited("websockets", f"this key has {most} websockets open, as many as it may", account, BUSY_RETRY_S)


def refuse_rate(account: Account, tokens: int) -> Refused | None:
    """A refusal if so many tokens are more than the key's rate allows now, or ever."""
    wait_s = account.tokens.wait_s(tokens) if account.tokens is not None else 0.0
    if not wait_s:
        return None
    most = account.limits.tokens_per_minute
    if wait_s == float("inf"):
        what = f"prompt and longest answer are {tokens} tokens; this key may use {most} a minute"
        fix = "shorten the prompt, or ask for a shorter answer with max_tokens"
        return Refused(429, "rate_limit_exceeded", what, fix=fix, headers=NO_RETRY, kind="tokens")
    return _limited("tokens", f"this key may use {most} tokens a minute; {tokens} are too many now", account, wait_s)


def refuse_quota(account: Account, tokens: int) -> Refused | None:
    """A refusal if so many tokens are more than is left of the key's day or month."""
    end_s = account.quota_end_s(tokens)
    if end_s is None:
        return None
    most = [
        f"{quota} tokens a {period}"
        for period, quota in (("day", account.limits.tokens_per_day), ("month", account.limits.tokens_per_month))
        if quota is not None
    ]
    what = f"the quota of this key is spent ({', '.join(most)}, in UTC)"
    fix = "wait for the next period, or ask whoever runs this server for a larger quota"
    return Refused(
        429, "insufficient_quota", what, fix=fix, retry_after_s=end_s, headers=NO_RETRY, kind="insufficient_quota"
    )


def _limited(kind: str, what: str, account: Account, wait_s: float) -> Refused:
    headers = {name.decode(): value.decode() for name, value in account.headers()}
    return Refused(
        429, "rate_limit_exceeded", what, fix="send it again later", retry_after_s=wait_s, headers=headers, kind=kind
    )


def show_wait(seconds: float) -> str:
    """A duration as OpenAI writes it in its headers: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"


def _end_of(period: str) -> float:
    """When a day or a month (UTC) ends, in seconds since 1970."""
    year, month, *day = (int(part) for part in period.split("-"))
    if day:
        return calendar.timegm((year, month, day[0], 0, 0, 0)) + 86400.0
    return float(calendar.timegm((year + month // 12, month % 12 + 1, 1, 0, 0, 0)))
