"""Mail as a destination of Cassata: {"type": "smtp", "to": "ops@example.com", "subject": "Nightly report"}.

The payload is the text of the mail. The server is the operator's to choose, by variables of the worker's environment: SMTP_HOST,
SMTP_PORT (25), SMTP_FROM. A client of Cassata chooses only whom it goes to, and what it says.
"""

from __future__ import annotations

import os
import re
import smtplib
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any

from cassata.courier.message import webhook_id
from cassata.model import Application, Delivery, ErrorKind, Outcome
from cassata.plugins import Deliver, Surroundings, TypeMissing, check_fields, ended

_ADDRESS = re.compile(r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,180}")


class Smtp:
    def validate(self, details: Mapping[str, Any], _application: Application) -> str:
        """What the service asks, before it takes an event."""
        check_fields(details, {"to": True, "subject": False})
        to, subject = str(details["to"]), details.get("subject", "")
        if not _ADDRESS.fullmatch(to):
            raise ValueError("to must be an address such as ops@example.com")
        if not isinstance(subject, str) or len(subject) > 200 or not subject.isprintable():
            raise ValueError("subject must be at most 200 visible characters")
        return f"smtp:{to}"

    def open(self, _surroundings: Surroundings) -> Deliver:
        """What a worker asks, when it first has a mail to send."""
        host = os.environ.get("SMTP_HOST")
        if not host:
            raise TypeMissing("this worker has no SMTP_HOST in its environment")
        port, sender = int(os.environ.get("SMTP_PORT", "25")), os.environ.get("SMTP_FROM", "cassata@localhost")

        def deliver(delivery: Delivery, _started_at: int) -> Outcome:
            """Send one mail: called from many threads at a time. What passes is tried again, what is refused for good is not."""
            mail = _mail(delivery, sender)
            seconds = 20 if delivery.timeout_ms is None else delivery.timeout_ms / 1000
            try:
                with smtplib.SMTP(host, port, timeout=seconds) as server:
                    refused = server.send_message(mail)
            except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
                code = getattr(error, "smtp_code", 0) or next(iter(getattr(error, "recipients", {}).values()), (0, b""))[0]
                kind = ErrorKind.REFUSED if code >= 500 else ErrorKind.CONNECTION_LOST
                return ended(delivery, kind, f"the server said {code}")
            except (OSError, smtplib.SMTPException) as error:
                return ended(delivery, ErrorKind.CONNECT_FAILED, type(error).__name__)
            return ended(delivery, None, None, f"accepted by {host}, {len(refused)} refused")

        return deliver


def _mail(delivery: Delivery, sender: str) -> EmailMessage:
    assert delivery.destination is not None
    mail = EmailMessage()
    mail["From"], mail["To"] = sender, delivery.destination.details["to"]
    mail["Subject"] = delivery.destination.details.get("subject", "")
    # The same for every attempt: by it a server, or a reader, can tell that a mail has come twice.
    mail["Message-Id"] = f"<{webhook_id(delivery.application_id, delivery.event_id)}@cassata>"
    mail.set_content((delivery.payload or b"").decode("utf-8", "replace"))
    return mail
