"""How fast something goes, and how long it will take."""

from __future__ import annotations


class Pace:
    """How fast a stage goes. The rate and the time that is left are counted from the first finished
    item: what comes before it, a server that starts and a model that loads, comes once."""

    def __init__(self) -> None:
        self._unit = ""
        self._begun = (0.0, 0)
        self._first: tuple[float, int] | None = None
        self._done = -1

    def count(self, done: int, unit: str, now: float) -> None:
        """`done` items are finished at `now` (seconds). A stage may count several things, one after
        the other: another unit or a smaller number begins anew."""
        if done < self._done or unit != self._unit or self._done < 0:
            self._begun, self._first = (now, done), None
        elif self._first is None and done > self._begun[1]:
            self._first = (now, done)
        self._unit, self._done = unit, done

    def rate(self, done: int, now: float) -> float | None:
        """Items a second; None before a second one is finished."""
        if self._first is None or done <= self._first[1] or now <= self._first[0]:
            return None
        return (done - self._first[1]) / (now - self._first[0])

    def seconds(self, now: float) -> float:
        """Since the count began."""
        return now - self._begun[0]

    def words(self, done: int, total: int | None, now: float) -> str:
        """Rate and time left where they are known: ", 5.2/s, 2:46 left"."""
        rate = self.rate(done, now)
        if not rate:
            return ""
        pace = f", {rate:.1f}/s" if rate >= 1 else f", {60 * rate:.1f}/min"
        left = ""
        if total and done < total:
            left = f", {clock((total - done) / rate)} left"
        return pace + left


def clock(seconds: float) -> str:
    """0:24, 2:46, 1:05:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
