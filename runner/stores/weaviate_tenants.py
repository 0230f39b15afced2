"""A collection's tenants: which are covered, which are inactive, and what becomes of those.

An inactive tenant cannot be read.  It is refused, left out with a word (`leave`), or
activated and put back as it was when the store is closed (`activate`, which the hazard
``activate-tenants`` guards: who only looks sees the others).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from runner.errors import PlanError, StoreError, TransientStoreError
from runner.model import Finding, Severity
from runner.stores.base import Location
from runner.stores.weaviate_wire import Wire

__all__ = ["Tenants"]

_ACTIVE = "ACTIVE"
_FINAL = frozenset({"ACTIVE", "INACTIVE", "OFFLOADED"})
_AWAKE_WITHIN_S = 300.0
_LISTED = 5


class Tenants:
    """The tenants of one collection.

    Args:
        wire: Its server.
        location: The plan's side: ``tenants``, ``inactive_tenants``.
        collection: The class's name.
        may_wake: Whether a tenant that the plan wants activated may be, by now.
    """

    def __init__(self, wire: Wire, location: Location, collection: str, *, may_wake: bool) -> None:
        self._wire = wire
        self._side = location.side
        self._collection = collection
        asked = location.options.get("tenants")
        self._chosen = None if asked in (None, "all") else [str(each) for each in asked]
        self._may_wake = may_wake
        self._inactive = str(location.options.get("inactive_tenants") or "refuse")
        if self._inactive not in ("refuse", "activate", "leave"):
            raise PlanError(
                f"{self._side}.inactive_tenants: {self._inactive!r} is not one of refuse, "
                "activate, leave"
            )
        self._states: dict[str, str] | None = None
        self._woken: dict[str, str] = {}
        self._lock = threading.RLock()

    def covered(self) -> list[str]:
        """The tenants that the plan's side covers, sorted; those that it names, in any case."""
        wanted = sorted(self._known() if self._chosen is None else set(self._chosen))
        if self._leaves:
            wanted = [each for each in wanted if self._known().get(each, _ACTIVE) == _ACTIVE]
        return wanted

    @property
    def _leaves(self) -> bool:
        """Whether inactive tenants are as if they did not exist."""
        return self._inactive == "leave" or (self._inactive == "activate" and not self._may_wake)

    def is_awake(self, tenant: str) -> bool:
        """Whether *tenant* can be read as it is; ``""`` stands for no tenants."""
        return not tenant or self._known().get(tenant) == _ACTIVE

    def reach(self, tenant: str) -> bool:
        """See to it that *tenant* can be read; False if it does not exist.

        Raises:
            StoreError: It is inactive, and the plan does not say to activate it.
        """
        if self.is_awake(tenant):
            return True
        with self._lock:
            state = self._known().get(tenant)
            if state is None or (state != _ACTIVE and self._leaves):
                return False
            if state != _ACTIVE:
                self._wake(tenant, state)
        return True

    def make(self, tenant: str, has_tenants: bool) -> None:
        """See to it that *tenant* can be written to.

        Raises:
            StoreError: The collection has tenants and none is named, or the other way round.
        """
        if bool(tenant) != has_tenants:
            found = f"records of tenant {tenant!r}" if tenant else "records of no tenant"
            kind = "has tenants" if has_tenants else "has no tenants"
            raise StoreError(f"{found} came for {self._collection}, which {kind}")
        if tenant and not self.reach(tenant):
            with self._lock:
                if tenant not in self._known():
                    self._wire.add_tenants(self._collection, [tenant])
                    self._states = None

    def findings(self) -> list[Finding]:
        """What is to be known of tenants that are missing or inactive."""
        states = self._known()
        wanted = states.keys() if self._chosen is None else set(self._chosen)
        missing = sorted(wanted - states.keys())
        # those that we activated ourselves to look at them are still to be allowed
        asleep = sorted(
            each
            for each in wanted & states.keys()
            if states[each] != _ACTIVE or each in self._woken
        )
        found = []
        if missing and self._side == "source":
            found.append(
                Finding(
                    f"{self._collection} has no tenant {_some(missing)}",
                    f"correct `{self._side}.tenants`",
                    key=f"{self._side}.tenants",
                )
            )
        if asleep:
            found.append(
                self._asleep(
                    f"{len(asleep):,} of {len(wanted):,} tenants are inactive ({_some(asleep)})"
                )
            )
        return found

    def _asleep(self, what: str) -> Finding:
        key = f"{self._side}.inactive_tenants"
        match self._inactive:
            case "activate":
                what += "; a run activates them, and puts them back at the end"
                if not self._may_wake:
                    what += "; what they hold is not looked at before that"
                hint = "allow the hazard activate-tenants"
                return Finding(what, hint, Severity.WARNING, "activate-tenants")
            case "leave":
                return Finding(f"{what}; they are not copied", "", Severity.WARNING, key)
        hint = f"write `{key}: activate`, or `leave` to copy the others"
        return Finding(f"{what}; they cannot be read so", hint, key=key)

    @property
    def woken(self) -> dict[str, str]:
        """The tenants that are to be put back, with the state they had."""
        with self._lock:
            return dict(self._woken)

    def take_over(self, woken: Mapping[str, str]) -> None:
        """Put back these as well, as far as they are active still."""
        if not woken:
            return
        with self._lock:
            known = self._known()
            self._woken |= {k: state for k, state in woken.items() if known.get(k) == _ACTIVE}

    def put_back(self) -> None:
        """Give the tenants that were activated the state they had."""
        with self._lock:
            if self._woken:
                self._wire.set_tenants(self._collection, self._woken)
                self._woken = {}
                self._states = None

    def forget(self) -> None:
        """The collection was made or removed."""
        with self._lock:
            self._states = None
            self._woken = {}

    def _wake(self, tenant: str, state: str) -> None:
        if self._inactive != "activate":
            raise StoreError(
                f"tenant {tenant} of {self._collection} is {state.lower()}, which cannot be read",
                f"write `{self._side}.inactive_tenants: activate`",
            )
        self._woken[tenant] = state if state in _FINAL else "INACTIVE"
        self._wire.set_tenants(self._collection, {tenant: _ACTIVE})
        give_up_at, pause = time.monotonic() + _AWAKE_WITHIN_S, 0.02
        while True:
            self._states = None
            if self._known().get(tenant) == _ACTIVE:
                return
            if time.monotonic() > give_up_at:
                raise TransientStoreError(
                    f"tenant {tenant} of {self._collection} is not active after "
                    f"{_AWAKE_WITHIN_S:.0f} s"
                )
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _known(self) -> dict[str, str]:
        with self._lock:
            if self._states is None:
                self._states = self._wire.tenants(self._collection)
            return self._states


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")
