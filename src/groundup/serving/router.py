"""Which of several engines a request goes to: the one that most likely has its beginning in its cache.

Two rules, in this order, and one bound over both:

1. The replica that computed the longest beginning of this prompt last. Beginnings are remembered at lengths
   that grow by a quarter, so a chat finds its replica again once a fifth of it is its own, however long the
   system prompt that it shares with others, for some twenty entries.
2. For a beginning nobody has computed, consistent hashing of its first blocks: replicas and prompts are
   points on a ring, and a prompt belongs to the next replica clockwise. Prompts that begin alike meet, and
   when a replica leaves only its own prompts move.

Neither may give a replica more than its share of what is running and a little more (`slack`): the next one
is taken then. That is the bound of Mirrokni, Thorup & Zadimoghaddam 2018 ("Consistent Hashing with Bounded
Loads", §2): a popular beginning spills over instead of drowning its replica. A prompt shorter than one block
has nothing worth keeping and goes to whoever has least to do.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence

BLOCK = 32
"""Tokens of a block in the prefix cache; see `serving/blocks.py`."""
PLACING_BLOCKS = 4
"""How many blocks place a prompt that nobody knows."""
GROWTH = 1.25
"""From one length that is remembered to the next."""
POINTS = 100
"""Of each replica on the ring: their shares of the prompts then differ by a tenth or so."""
SLACK = 1.25
"""How much more than its share of what runs a replica may have; the paper's 1 + ε."""
REMEMBERED = 1 << 17
"""Beginnings that are remembered; those not seen for longest are forgotten. About 25 MB."""


class NoReplica(Exception):
    """No replica takes work now."""


class Router:
    """Chooses a replica for each request and counts what each has to do. Not thread-safe: one event loop's."""

    def __init__(self, replicas: Collection[str] = (), *, slack: float = SLACK) -> None:
        assert slack > 1, "a bound at exactly the share would leave no room for the last request"
        self.slack = slack
        self.loads: dict[str, int] = {}
        """Requests that each replica has taken and not finished, also of those being drained."""
        self._ring: list[tuple[int, str]] = []
        self._open: set[str] = set()
        self._known: OrderedDict[int, str] = OrderedDict()
        for replica in replicas:
            self.add(replica)

    @property
    def replicas(self) -> list[str]:
        """Those that take work, sorted."""
        return sorted(self._open)

    def add(self, replica: str) -> None:
        """Let a replica take work (again)."""
        if replica in self._open:
            return
        self._open.add(replica)
        self.loads.setdefault(replica, 0)
        for number in range(POINTS):
            bisect.insort(self._ring, (_point(f"{replica}/{number}".encode()), replica))

    def remove(self, replica: str) -> None:
        """Send nothing more to a replica; what it has taken goes on and is still counted."""
        self._open.discard(replica)
        self._ring = [point for point in self._ring if point[1] != replica]
        self._known = OrderedDict((point, name) for point, name in self._known.items() if name != replica)
        if not self.loads.get(replica):
            self.loads.pop(replica, None)

    def take(
        self, model: str, ids: Sequence[int] = (), *, adapter: str | None = None, avoid: Collection[str] = ()
    ) -> str:
        """The replica for a request, which counts as its load until `done`.

        ids are the prompt's tokens; empty for rows and others without a prefix. avoid are replicas that just
        failed it. Raises NoReplica.
        """
        candidates = self._open - set(avoid)
        if not candidates:
            raise NoReplica
        if len(ids) < BLOCK:
            found = min(candidates, key=lambda replica: (self.loads[replica], replica))
        else:
            found = self._by_beginning(beginnings(model, adapter, ids), candidates)
        self.loads[found] += 1
        return found

    def done(self, replica: str) -> None:
        """A request that `take` gave to a replica has ended."""
        self.loads[replica] -= 1
        assert self.loads[replica] >= 0, f"more requests ended on {replica} than it took"
        if not self.loads[replica] and replica not in self._open:
            del self.loads[replica]

    def _by_beginning(self, points: list[int], candidates: set[str]) -> str:
        total = sum(self.loads[replica] for replica in candidates) + 1
        most = math.ceil(self.slack * total / len(candidates))
        free = {replica for replica in candidates if self.loads[replica] < most}
        assert free, "not every replica is above the mean"
        knows = (self._known.get(point, "") for point in reversed(points))
        found = next((replica for replica in knows if replica in free), None) or self._on_ring(points, free)
        for point in points:
            if point == points[-1] or self._known.get(point) not in self._open:
                self._known[point] = found  # a shared beginning stays where it is, the own one moves along
            self._known.move_to_end(point)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return found

    def _on_ring(self, points: list[int], free: set[str]) -> str:
        """The first free replica clockwise from where the prompt's first blocks lie."""
        placing = points[:PLACING_BLOCKS][-1]  # the first lengths are 1, 2, 3 and 4 blocks
        start = bisect.bisect_right(self._ring, (placing, ""))
        clockwise = (self._ring[(start + step) % len(self._ring)][1] for step in range(len(self._ring)))
        return next(replica for replica in clockwise if replica in free)


def beginnings(model: str, adapter: str | None, ids: Sequence[int]) -> list[int]:
    """Points of the prompt's first 1, 2, 3, 4, 5, 6, 8, 10, … blocks, as far as it has them."""
    digest = hashlib.blake2b(f"{model}\0{adapter or ''}\0".encode("utf-8", "surrogatepass"), digest_size=8)
    points, done, blocks = [], 0, 1
    while blocks * BLOCK <= len(ids):
        digest.update(array("q", ids[done : blocks * BLOCK]).tobytes())
        points.append(int.from_bytes(digest.digest()))
        done, blocks = blocks * BLOCK, max(blocks + 1, int(blocks * GROWTH))
    return points


def _point(data: bytes) -> int:
    """The same on every machine and in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
