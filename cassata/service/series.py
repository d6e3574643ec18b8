"""The calls about series: rules that make events, and the instances of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import quote

from flask import Response, request

from cassata.errors import InvalidEvent, RecurrenceError, UnknownSeries
from cassata.model import Scope
from cassata.scheduler import Scheduler
from cassata.series import Instance, Series
from cassata.service import bodies, series_wire, wire
from cassata.service.answers import answer
from cassata.service.auth import Route
from cassata.service.ids import possible_application, possible_series
from cassata.service.preconditions import etag, has_if_match, version_of_instance, version_of_series
from cassata.service.series_wire import WrittenSeries, read_series, series_details
from cassata.service.wire import USUAL_PAGE_LENGTH, InvalidDocument


class SeriesCalls:
    """The routes over the series of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._timetable = scheduler.timetable

    @property
    def routes(self) -> tuple[Route, ...]:
        all_of_them = "/cassata/series/<application_id>"
        one = f"{all_of_them}/<series_id>"
        instance = f"{one}/instances/<instance_id>"
        read, publish, unknown = Scope.READ, Scope.PUBLISH, UnknownSeries
        return (
            Route(all_of_them, ("GET",), self.series_list, read),
            Route(all_of_them, ("POST",), self.create_series, publish),
            Route(f"{all_of_them}/preview", ("POST",), self.preview_series, publish),
            Route(one, ("PUT",), self.put_series, publish),
            Route(one, ("GET",), self.series, read, foreign=unknown),
            Route(one, ("DELETE",), self.cancel_series, publish, foreign=unknown),
            Route(f"{one}/pause", ("POST",), self.pause_series, publish, foreign=unknown),
            Route(f"{one}/resume", ("POST",), self.resume_series, publish, foreign=unknown),
            Route(f"{one}/run", ("POST",), self.run_series, publish, foreign=unknown),
            Route(f"{one}/instances", ("GET",), self.instances, read, foreign=unknown),
            Route(instance, ("PATCH",), self.change_instance, publish, foreign=unknown),
            Route(instance, ("DELETE",), self.cancel_instance, publish, foreign=unknown),
            Route(f"{instance}/following", ("PUT",), self.change_following, publish, foreign=unknown),
            Route(f"{instance}/following", ("DELETE",), self.cancel_following, publish, foreign=unknown),
        )

    # --- a series ------------------------------------------------------------------------------------------------------

    def create_series(self, application_id: str) -> Response:
        written = read_series(bodies.document(), {"application-id": application_id})
        return self._stored(written)

    def put_series(self, application_id: str, series_id: str) -> Response:
        written = read_series(bodies.document(), {"application-id": application_id, "series-id": series_id})
        if not has_if_match():
            return self._stored(written)
        with _in_words(written):
            return _answer(self._timetable.replace(written.new, version=version_of_series()))

    def _stored(self, written: WrittenSeries) -> Response:
        with _in_words(written):
            series, created = self._timetable.put(written.new)
        return _created(series) if created else _answer(series)

    def preview_series(self, application_id: str) -> Response:
        possible_application(application_id)
        asked = series_wire.read_preview(bodies.document())
        with _within_reach(pointer="/from"):
            return answer(series_wire.preview(asked, time.time_ns() // 1_000_000))

    def series_list(self, application_id: str) -> Response:
        possible_application(application_id)
        listing = series_wire.read_listing(request.args.items(multi=True))
        limit = listing.pop("limit", USUAL_PAGE_LENGTH)
        return answer(series_wire.page(self._timetable.series(application_id, **listing, limit=limit + 1), limit))

    def series(self, application_id: str, series_id: str) -> Response:
        return _answer(self._timetable.get(*possible_series(application_id, series_id)))

    def pause_series(self, application_id: str, series_id: str) -> Response:
        return _answer(self._timetable.pause(*possible_series(application_id, series_id), version=version_of_series()))

    def resume_series(self, application_id: str, series_id: str) -> Response:
        return _answer(self._timetable.resume(*possible_series(application_id, series_id), version=version_of_series()))

    def run_series(self, application_id: str, series_id: str) -> Response:
        event = self._timetable.run_now(*possible_series(application_id, series_id))
        location = f"/cassata/event/{quote(event.application_id)}/{quote(event.event_id)}"
        return answer(wire.summary(event), 201, headers={"Location": location})

    def cancel_series(self, application_id: str, series_id: str) -> Response:
        purges = series_wire.read_purge(request.args.items(multi=True))
        ids = possible_series(application_id, series_id)
        if not purges:
            return _answer(self._timetable.cancel(*ids, version=version_of_series()))
        self._timetable.delete(*ids, version=version_of_series())
        return answer({"status": "ok"})

    # --- its instances -------------------------------------------------------------------------------------------------

    def instances(self, application_id: str, series_id: str) -> Response:
        begin, end, limit, known = series_wire.read_window(request.args.items(multi=True), time.time_ns() // 1_000_000)
        ids = possible_series(application_id, series_id)
        zone = self._timetable.get(*ids).rule.timezone
        with _within_reach(parameter="from"):
            found = self._timetable.instances(*ids, begin, end, limit=limit + 1, known=known)
        return answer(series_wire.instances_page(found, limit, zone))

    def change_instance(self, application_id: str, series_id: str, instance_id: str) -> Response:
        written = series_wire.read_changes(bodies.document())
        ids = possible_series(application_id, series_id)
        with _in_words(written), _within_reach(parameter="instance-id"):
            changed = self._timetable.change_instance(*ids, instance_id, written.fields, version=version_of_instance())
        return self._answer_instance(ids, changed)

    def cancel_instance(self, application_id: str, series_id: str, instance_id: str) -> Response:
        ids = possible_series(application_id, series_id)
        with _within_reach(parameter="instance-id"):
            cancelled = self._timetable.cancel_instance(*ids, instance_id, version=version_of_instance())
        return self._answer_instance(ids, cancelled)

    def _answer_instance(self, ids: tuple[str, str], found: Instance) -> Response:
        zone = self._timetable.get(*ids).rule.timezone
        return answer(series_wire.instance_document(found, zone), headers=etag(found.version))

    def change_following(self, application_id: str, series_id: str, instance_id: str) -> Response:
        written = read_series(bodies.document(), {"application-id": application_id})
        ids = possible_series(application_id, series_id)
        with _in_words(written), _within_reach(parameter="instance-id"):
            _, following = self._timetable.change_following(*ids, instance_id, written.new, version=version_of_series())
        return _created(following)

    def cancel_following(self, application_id: str, series_id: str, instance_id: str) -> Response:
        ids = possible_series(application_id, series_id)
        with _within_reach(parameter="instance-id"):
            return _answer(self._timetable.cancel_following(*ids, instance_id, version=version_of_series()))


@contextlib.contextmanager
def _in_words(written: WrittenSeries | wire.Change) -> Iterator[None]:
    """Tell what the timetable finds wrong by the names that the client used."""
    try:
        yield
    except InvalidEvent as error:
        raise written.invalid(error) from error


@contextlib.contextmanager
def _within_reach(**place: str) -> Iterator[None]:
    """Tell that an instant is so far from all that is known that a rule with a count is not followed to there."""
    try:
        yield
    except RecurrenceError as error:
        raise InvalidDocument([{**place, "detail": problem.detail} for problem in error.problems]) from error


def _created(series: Series) -> Response:
    location = f"/cassata/series/{quote(series.application_id)}/{quote(series.series_id)}"
    return _answer(series, 201, {"Location": location})


def _answer(series: Series, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return answer(series_details(series), status, headers={**etag(series.version), **(headers or {})})
