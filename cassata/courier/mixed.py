"""libcurl for HTTP, and a pool of threads for whatever else there is to deliver: made when the first of it comes."""

from __future__ import annotations

from cassata.courier import CourierSettings
from cassata.courier.curl import CurlCourier
from cassata.courier.pool import PoolCourier
from cassata.model import Delivery, Outcome
from cassata.plugins import Deliver


class MixedCourier:
    """The courier contract over two couriers, which share the slots of one.

    What ends in the pool wakes libcurl's wait: neither waits for the other. As long as there has been nothing but HTTP it adds
    nothing but a comparison.
    """

    def __init__(self, settings: CourierSettings, others: Deliver) -> None:
        self._settings = settings
        self._others = others
        self._http = CurlCourier(settings)
        self._pool: PoolCourier | None = None

    @property
    def busy(self) -> int:
        return self._http.busy if self._pool is None else self._http.busy + self._pool.busy

    @property
    def free(self) -> int:
        return self._http.free if self._pool is None else max(0, self._http.free - self._pool.occupied)

    def submit(self, delivery: Delivery, *, started_at: int) -> None:
        if delivery.destination is None and delivery.refusal is None:
            self._http.submit(delivery, started_at=started_at)
            return
        if self._pool is None:
            self._pool = PoolCourier(self._settings, self._others, announce=self._http.wake)
        self._pool.submit(delivery, started_at=started_at)

    def poll(self, timeout: float) -> list[Outcome]:
        pool = self._pool
        if pool is None or not pool.occupied:
            return self._http.poll(timeout)
        ended = pool.poll(0)
        ended += self._http.poll(0 if ended else min(timeout, pool.patience()))
        return ended or pool.poll(0)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._http.close()
