"""`caisson service new` and `call`, and the fixture `qrexec_service`, as their users have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caisson.paths import SERVICE_EXAMPLE
from caisson.tools import umbrella

CAISSON = Path(sys.executable).parent / "caisson"
pytest_plugins = ["pytester"]


def caisson(*words: str, cwd: Path, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
    """Run the command; its exit code, and what it said."""
    done = subprocess.run(
        [CAISSON, *words],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        env=os.environ | env,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def lay(directory: Path, name: str, script: str) -> None:
    """Lay a service, a script of shell."""
    path = directory / "etc/qubes-rpc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service that was laid under another name than the example's."""
    directory = tmp_path_factory.mktemp("services")
    code, out, err = caisson("service", "new", "acme.Price-List_2", cwd=directory)
    assert (code, out) == (0, "")
    assert err == (
        "`acme.Price-List_2` is laid; try it: "
        "cd acme.Price-List_2 && caisson service call acme.Price-List_2+EUR\n"
    )
    return directory / "acme.Price-List_2"


def test_what_is_laid_is_the_example_under_another_name(laid: Path) -> None:
    """Every file, with its mode, and nowhere the old name."""
    found = {str(p.relative_to(laid)): p for p in laid.rglob("*") if p.is_file()}
    assert set(found) == {
        "README.md",
        "etc/qubes-rpc/acme.Price-List_2",
        "etc/qubes/rpc-config/acme.Price-List_2",
        "policy.d/40-acme-price-list_2.policy",
        "test_acme_price_list_2.policy.toml",
        "test_acme_price_list_2.py",
    }
    assert not any("BTCprice" in p.read_text() or "btcprice" in str(p) for p in found.values())
    modes = {name: path.stat().st_mode & 0o777 for name, path in found.items()}
    assert modes.pop("etc/qubes-rpc/acme.Price-List_2") == 0o755
    assert set(modes.values()) == {0o644}
    assert len(found["README.md"].read_text().splitlines()) <= 20


def test_its_tests_pass_and_can_fail(laid: Path) -> None:
    """As laid; and not any more when the service or the policy is broken."""

    def tested() -> tuple[int, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(laid)],
            cwd=laid,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout

    code, out = tested()
    assert (code, b"20 passed" in out) == (0, True), out
    service = laid / "etc/qubes-rpc/acme.Price-List_2"
    policy = laid / "policy.d/40-acme-price-list_2.policy"
    whole = service.read_text(), policy.read_text()
    try:
        service.write_text(whole[0].replace("[A-Z][A-Z][A-Z])", "*)"))
        policy.write_text(whole[1].replace("deny", "ask"))
        code, out = tested()
    finally:
        service.write_text(whole[0])
        policy.write_text(whole[1])
    assert code == 1
    assert b"test_what_is_no_currency_is_refused" in out
    assert b"expect-3" in out


def test_a_call_passes_everything_on(tmp_path: Path) -> None:
    """Input, output, errors, code; a clean environment with what a service is told."""
    lay(tmp_path, "my.Env", 'env | grep -v ^_=; cat; echo said >&2; exit "${1-0}"')
    code, out, err = caisson("service", "call", "my.Env+42", cwd=tmp_path, stdin=b"in", SECRET="x")
    assert (code, err) == (42, "said\n")
    assert "SECRET" not in out
    assert out.endswith("in")
    told = set(out.splitlines())
    assert {"QREXEC_REMOTE_DOMAIN=caller", "QREXEC_SERVICE_FULL_NAME=my.Env+42"} <= told
    assert {"QREXEC_SERVICE_ARGUMENT=42", "QREXEC_REQUESTED_TARGET_TYPE="} <= told
    words = ("service", "call", "--from", "wallet", "--path", "etc/qubes-rpc", "my.Env")
    code, out, _ = caisson(*words, cwd=tmp_path)
    assert code == 0
    assert {"QREXEC_REMOTE_DOMAIN=wallet", "QREXEC_SERVICE_ARGUMENT="} <= set(out.splitlines())


def test_codes_are_those_of_an_agent(tmp_path: Path) -> None:
    """127 for none, 125 for one that cannot be run, 128 and the signal's number by a signal."""
    lay(tmp_path, "my.Text", "exit 0")
    (tmp_path / "etc/qubes-rpc/my.Text").chmod(0o644)
    lay(tmp_path, "my.Bad", "exit 0")
    (tmp_path / "etc/qubes/rpc-config").mkdir(parents=True)
    (tmp_path / "etc/qubes/rpc-config/my.Bad").write_text('force-user = "root"\n')
    for service, expected in (("my.Absent", 127), ("my.Text", 125), ("my.Bad", 125)):
        code, out, err = caisson("service", "call", service, cwd=tmp_path)
        assert (code, out) == (expected, "")
        assert err.startswith("error: ")


def test_a_service_that_is_not_there_is_told_without_a_qube(tmp_path: Path) -> None:
    """By its name alone, with where it was looked for; one behind a TCP link is there."""
    lay(tmp_path, "my.Other", "exit 0")
    (tmp_path / "etc/qubes-rpc/my.Nowhere").symlink_to("/nonexistent")
    (tmp_path / "etc/qubes-rpc/my.Closed").symlink_to("/dev/tcp/127.0.0.1/1")
    for called, name in (
        ("my.Absent", "my.Absent"),
        ("my.Nowhere+x", "my.Nowhere"),
        ("my.Absent+" + "x" * 300, "my.Absent"),
    ):
        code, out, err = caisson("service", "call", called, cwd=tmp_path)
        assert (code, out) == (127, "")
        first, hint, *rest = err.splitlines()
        assert first == f"error: there is no service `{name}` in `etc/qubes-rpc`"
        assert hint.startswith("hint: say with `--path` where services are")
        assert rest == []
    code, _, err = caisson("service", "call", "my.Closed", cwd=tmp_path)
    assert code == 125, err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("new", "a b"), 1, "service name `a b` is not valid"),
        (("new", "../evil"), 1, "service name `../evil` is not valid"),
        (("new", ".."), 1, "starts with `.`"),
        (("new", "x+y"), 1, "service name `x+y` is not valid"),
        (("new",), 2, "NAME"),
        (("call", "a/b"), 1, "service name `a/b` is not valid"),
        (("call", "my.Service+a b"), 1, "service argument"),
        (("call", "--from", "no name", "my.Service"), 1, "qube name `no name`"),
        (("call", "--user", "a:b", "my.Service"), 1, "user name"),
        (("call", "--path", "nowhere", "my.Service"), 1, "there is no directory `nowhere`"),
        (("call", "--path", "a:b", "my.Service"), 1, "contains a `:`"),
        (("call",), 2, "NAME"),
        ((), 2, "ACTION"),
    ],
)
def test_what_makes_no_sense_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    """An error and a hint; nothing is laid and nothing is run."""
    lay(tmp_path, "my.Service", "echo reached")
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["caisson", "service", *words])
    result = umbrella.main()
    out, err = capsys.readouterr()
    assert (result, out) == (code, "")
    assert err.startswith("error: ")
    assert told in err
    assert {each.name for each in tmp_path.iterdir()} == {"etc", "a:b"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A directory, a file or a link that is there stays as it is."""
    (tmp_path / "my.One").mkdir()
    (tmp_path / "my.Two").write_text("mine")
    (tmp_path / "my.Three").symlink_to(tmp_path / "elsewhere")
    for name in ("my.One", "my.Two", "my.Three"):
        code, _, err = caisson("service", "new", name, cwd=tmp_path)
        assert code == 1
        assert f"error: `{name}` is there already" in err
    assert list((tmp_path / "my.One").iterdir()) == []
    assert (tmp_path / "my.Two").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_the_fixture_calls_the_service_beside_the_test(pytester: pytest.Pytester) -> None:
    """Or in a directory that is named; it gives output, errors and code, and ends what hangs."""
    lay(pytester.path, "my.Echo", 'printf %s "$QREXEC_REMOTE_DOMAIN:$1:$EXTRA:"; cat; exit 7')
    lay(pytester.path, "my.Hang", 'sleep 1000 & echo $! >"$PLACE/child"; wait')
    lay(pytester.path / "other", "my.Other", "echo other; kill -KILL $$")
    pytester.makepyfile(
        """
        import pathlib, subprocess, time, pytest

        def test_answer(qrexec_service):
            extra = {"EXTRA": "x"}
            answer = qrexec_service("my.Echo+a", stdin=b"in", source="work", environment=extra)
            assert answer == (7, b"work:a:x:in", b"")

        def test_elsewhere(qrexec_service):
            assert qrexec_service("my.Other", path="other") == (137, b"other\\n", b"")

        def test_hanging(qrexec_service):
            place = pathlib.Path(__file__).parent
            told, patience = place / "child", 0.5
            while not (told.exists() and told.read_text()):
                with pytest.raises(subprocess.TimeoutExpired):
                    qrexec_service(
                        "my.Hang", timeout=patience, environment={"PLACE": str(place)}
                    )
                patience *= 2  # a slow machine may not have come so far
            status = pathlib.Path("/proc", told.read_text().strip(), "status")
            while status.exists() and "\tZ (zombie)" not in status.read_text():
                time.sleep(0.005)

        def test_wrong(qrexec_service):
            with pytest.raises(Exception, match="is not valid"):
                qrexec_service("a b")
        """
    )
    quiet = "asyncio_default_fixture_loop_scope=function"
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-o", quiet)
    result.assert_outcomes(passed=4)


def test_the_example_of_the_checkout_is_what_its_readme_says() -> None:
    """Each file in the table is there."""
    for line in (SERVICE_EXAMPLE / "README.md").read_text().splitlines():
        if line.startswith("| `"):
            assert (SERVICE_EXAMPLE / line.split("`")[1]).is_file(), line
