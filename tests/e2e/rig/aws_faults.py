"""How the fake AWS misbehaves, when it is told to.

Each fault is for some services and actions (none named: all), for some seconds and some calls (none named: until it is
taken back).  The first fault that fits a call is the one that it meets."""
import threading
import time

# kind: (what it does, the parameters that it needs)
KINDS = {
    "down": ("the connection is closed without an answer, and nothing is done", ()),
    "slow": ("the call is done, and answered `delay` seconds later", ("delay",)),
    "throttle": ("nothing is done; in turns the service's own throttling error, 429, and 503 with Retry-After", ()),
    "rate": ("no more than `per_second` calls a second are done, the others are throttled", ("per_second",)),
    "half": ("PutLogEvents: the first half of the batch is stored, the rest is told to be rejected", ()),
    "partial": ("PutEvents: the first half of the entries is sent, the rest is told to have failed", ()),
    "lost": ("the call is done, and the connection is closed before the answer", ()),
    "refuse": ("nothing is done; answered with `status` and the error `code`", ("status", "code")),
}
# The only action to which some kinds can happen.
ONLY = {"half": ("PutLogEvents",), "partial": ("PutEvents",)}


class Fault:
    def __init__(self, kind, services=(), actions=(), seconds=None, times=None, **values):
        wanted = KINDS[kind][1] if kind in KINDS else None
        if wanted is None:
            raise ValueError(f"there is no fault {kind!r}, but {', '.join(KINDS)}")
        if set(wanted) != set(values):
            raise ValueError(f"{kind} takes {', '.join(wanted) or 'no values'}, not {', '.join(values) or 'none'}")
        self.kind, self.values, self.met = kind, values, 0
        self.services, self.actions = set(services), set(actions or ONLY.get(kind, ()))
        self.until = time.monotonic() + seconds if seconds is not None else None
        self.times = times
        self.tokens, self.filled = None, time.monotonic()

    def fits(self, service, action):
        return ((not self.services or service in self.services) and (not self.actions or action in self.actions)
                and (self.until is None or time.monotonic() < self.until) and (self.times is None or self.met < self.times))

    def has_room(self):
        """Whether the bucket of a `rate` has a token for this call."""
        rate, now = float(self.values["per_second"]), time.monotonic()
        full = max(rate, 1.0)
        self.tokens = full if self.tokens is None else min(full, self.tokens + (now - self.filled) * rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Faults:
    def __init__(self):
        self.guard, self.all = threading.Lock(), []

    def add(self, kind, **how):
        with self.guard:
            self.all.append(Fault(kind, **how))

    def clear(self):
        with self.guard:
            self.all = []

    def meet(self, service, action):
        """(kind, values, how many calls it has met before) of what happens to this call; None if nothing does."""
        with self.guard:
            for fault in self.all:
                if not fault.fits(service, action):
                    continue
                if fault.kind == "rate" and fault.has_room():
                    return None
                fault.met += 1
                return ("throttle" if fault.kind == "rate" else fault.kind), fault.values, fault.met - 1
        return None
