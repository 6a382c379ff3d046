"""Tests of the service my.GetBTCprice; run them with pytest."""

import pytest

SERVICE = "my.GetBTCprice"


@pytest.mark.parametrize("currency", ["EUR", "USD"])
def test_a_price_is_a_number_on_a_line(qrexec_service, currency):
    answer = qrexec_service(f"{SERVICE}+{currency}", source="wallet")
    assert (answer.code, answer.stderr) == (0, b"")
    assert float(answer.stdout) > 0
    assert answer.stdout.count(b"\n") == 1


@pytest.mark.parametrize("argument", ["", "eur", "EU", "EURO", "EUR+USD", "--help", "..", "E.R"])
def test_what_is_no_currency_is_refused(qrexec_service, argument):
    answer = qrexec_service(f"{SERVICE}+{argument}", source="wallet")
    assert (answer.code, answer.stdout) == (2, b"")


def test_a_currency_without_a_price_is_an_error(qrexec_service):
    answer = qrexec_service(f"{SERVICE}+XYZ", source="wallet")
    assert (answer.code, answer.stdout) == (3, b"")


def test_what_the_caller_sends_changes_nothing(qrexec_service):
    answer = qrexec_service(f"{SERVICE}+EUR", stdin=b"USD\n0.01\n" * 1000, source="wallet")
    assert answer.stdout == qrexec_service(f"{SERVICE}+EUR", source="wallet").stdout
