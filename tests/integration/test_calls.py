"""Calls between real qubes: what a program on either side sees of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest
from grounds.processes import PATIENCE, until
from grounds.whole import Whole

from caisson.names import QubeName

pytestmark = pytest.mark.root

MIB = 1 << 20
POLICY = """\
my.AsRoot     *      caller  @anyvm          allow  user=root
my.Default    *      caller  @default        allow  target=callee
my.Disposable *      caller  @dispvm         allow
my.Nested     *      caller  @dispvm:base    allow
my.Staying    *      caller  @dispvm         allow
my.Tagged     *      caller  @tag:server     allow
my.Typed      *      caller  @type:AppVM     allow
my.Sleeper    *      caller  sleeper         allow
my.Lazy       *      caller  sleeper         allow  autostart=no
my.Denied     *      @anyvm  @anyvm          deny
qubes.OpenInVM *     caller  @dispvm         allow
qubes.GetImageRGBA * caller  @dispvm         allow
qubes.OpenURL *      caller  callee          deny
my.Arg        +good  caller  callee          allow
my.Arg        *      caller  callee          deny
*             *      caller  callee          allow
"""

OPENER = """\
#!/bin/sh
hostname >>"$1"
"""


@pytest.fixture(scope="module")
def calls(whole: Whole) -> Iterator[Whole]:
    """`caller` and `callee` run, `sleeper` is halted, disposables are based on `base`."""
    names = ("caller", "callee", "sleeper", "base")
    try:
        for name in names:
            whole.app(name, start=True)
        for name in ("sleeper", "base"):
            whole.service(name, "my.Where", 'hostname; echo "$QREXEC_REMOTE_DOMAIN"\n')
            whole.service(name, "qubes-open", OPENER, where="/usr/local/bin")
            for service in ("my.Sleeper", "my.Lazy", "my.Disposable", "my.Nested"):
                whole.service(name, service, "exec /usr/local/etc/qubes-rpc/my.Where\n")
            whole.shut_down(name)
        whole.call("admin.vm.property.Set+template_for_dispvms", "base", b"True")
        for name in ("caller", "dom0"):
            method = f"admin.{'vm.' if name == 'caller' else ''}property.Set+default_dispvm"
            whole.call(method, name, b"base")
        whole.call("admin.vm.tag.Set+server", "callee")
        whole.policy(POLICY)
        yield whole
    finally:
        whole.call("admin.property.Set+default_dispvm", "dom0", b"")
        for name in names:
            whole.discard(name)


def call(
    whole: Whole, service: str, target: str = "callee", *, after: str = "", stdin: bytes = b""
) -> tuple[int, str, str]:
    """Call from `caller`; exit code, stdout, stderr."""
    done = whole.inside("caller", f"qrexec-client-vm {target} {service} {after}", stdin=stdin)
    return done.code, done.out, done.err


def test_every_exit_code_comes_back(calls: Whole) -> None:
    """All 256, the service's own 125 to 127 and 255 among them."""
    calls.service("callee", "my.Exit", 'exit "$1"\n')
    said = calls.said(
        "caller",
        "for n in $(seq 0 255); do qrexec-client-vm callee my.Exit+$n </dev/null; echo $?; done",
    )
    assert [int(line) for line in said.split()] == list(range(256))


def test_a_service_that_dies_of_a_signal_ends_like_in_a_shell(calls: Whole) -> None:
    """128 and the number of the signal."""
    calls.service("callee", "my.Killed", "kill -9 $$\n")
    assert call(calls, "my.Killed")[0] == 137


def test_what_cannot_be_served_has_its_own_code(calls: Whole) -> None:
    """127 without a service, 125 where it cannot be run, 126 where the policy refuses."""
    calls.service("callee", "my.NotExecutable", "true\n", mode="644")
    assert call(calls, "my.Absent")[0] == 127
    code, out, err = call(calls, "my.NotExecutable")
    assert (code, out) == (125, "")
    assert "not executable" in err
    assert call(calls, "my.Denied") == (126, "", "Request refused\n")
    assert call(calls, "my.Exit", "nowhere") == (126, "", "Request refused\n")
    assert call(calls, "my.Exit", "caller") == (126, "", "Request refused\n")


def test_the_three_streams_stay_apart(calls: Whole) -> None:
    """Stdin goes in; stdout and stderr come out, each where it belongs."""
    calls.service("callee", "my.Streams", "tr a-z A-Z; echo problem >&2; exit 3\n")
    assert call(calls, "my.Streams", stdin=b"quiet\n") == (3, "QUIET\n", "problem\n")


def test_messages_wait_for_a_reader_that_comes_to_them_last(calls: Whole) -> None:
    """A program may read all output first, and then a hundred messages, written one by one."""
    talk = "for i in $(seq 100); do echo $i >&2; sleep 0.001; done; echo done\n"
    calls.service("callee", "my.Talk", talk)
    child = calls.begin("caller", "exec qrexec-client-vm callee my.Talk")
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.read() == b"done\n"
    assert child.stderr.read().split() == [b"%d" % number for number in range(1, 101)]
    assert child.wait(PATIENCE) == 0


def test_the_end_of_input_reaches_the_service_before_its_output_ends(calls: Whole) -> None:
    """A service that answers only after the end of its input gets that end."""
    calls.service("callee", "my.Count", "wc -c\n")
    assert call(calls, "my.Count", stdin=b"x" * 100_000) == (0, "100000\n", "")


def test_a_service_for_one_argument_is_found_before_the_general_one(calls: Whole) -> None:
    """The specific one wins in any directory; in each step the first directory wins."""
    calls.service("callee", "my.Search", "echo general early\n", where="/run/qubes-rpc")
    calls.service("callee", "my.Search", "echo general late\n")
    calls.service("callee", "my.Search+x", "echo specific late\n")
    calls.service("callee", "my.Search+y", "echo y early\n", where="/run/qubes-rpc")
    calls.service("callee", "my.Search+y", "echo y late\n")
    said = [call(calls, service)[1] for service in ("my.Search", "my.Search+x", "my.Search+y")]
    assert said == ["general early\n", "specific late\n", "y early\n"]


def test_the_policy_sees_the_argument(calls: Whole) -> None:
    """One argument allowed, every other denied."""
    calls.service("callee", "my.Arg", 'echo "arg:$1"\n')
    assert call(calls, "my.Arg+good") == (0, "arg:good\n", "")
    for service in ("my.Arg", "my.Arg+bad", "my.Arg+goodx"):
        assert call(calls, service)[0] == 126


def test_a_service_knows_who_called_and_how(calls: Whole) -> None:
    """The variables of the qrexec protocol, and none of the caller's making."""
    calls.service("callee", "my.Env", "env | grep ^QREXEC_ | sort; id -un; pwd\n")
    code, out, _ = call(calls, "my.Env+a+b")
    assert code == 0
    lines = out.splitlines()
    assert lines[-2:] == ["user", "/home/user"]
    variables = dict(line.split("=", 1) for line in lines[:-2])
    assert variables.pop("QREXEC_AGENT_PID").isdigit()
    assert variables == {
        "QREXEC_REMOTE_DOMAIN": "caller",
        "QREXEC_REQUESTED_TARGET_TYPE": "",
        "QREXEC_SERVICE_ARGUMENT": "a+b",
        "QREXEC_SERVICE_FULL_NAME": "my.Env+a+b",
    }
    calls.service("callee", "my.Args", 'echo $#:"$1"\n')
    assert call(calls, "my.Args")[1] == "0:\n"
    assert call(calls, "my.Args+")[1] == "0:\n"
    assert call(calls, "my.Args+a+b")[1] == "1:a+b\n"


def test_a_rule_chooses_the_user_of_the_service(calls: Whole) -> None:
    """`user=root` in the rule; the default user otherwise."""
    calls.service("callee", "my.AsRoot", "id -un\n")
    calls.service("callee", "my.AsUser", "id -un\n")
    assert call(calls, "my.AsRoot")[1] == "root\n"
    assert call(calls, "my.AsUser")[1] == "user\n"


def test_a_local_program_speaks_with_the_service(calls: Whole) -> None:
    """Its stdin and stdout are the service's; the caller's own come as SAVED_FD_0 and 1."""
    calls.service("callee", "my.Double", "read n; echo $((n * 2))\n")
    program = "/bin/sh -c 'echo 21; read answer; echo got $answer >&$SAVED_FD_1'"
    assert call(calls, "my.Double", after=program) == (0, "got 42\n", "")


def test_the_code_of_a_local_program_counts_where_the_service_went_well(calls: Whole) -> None:
    """The service's code if it is not 0, else the program's; refused, the program never runs."""
    calls.service("callee", "my.Four", "exit 4\n")
    calls.service("callee", "my.Fine", "exit 0\n")
    assert call(calls, "my.Fine", after="/bin/sh -c 'exit 9'")[0] == 9
    assert call(calls, "my.Four", after="/bin/sh -c 'exit 9'")[0] == 4
    assert call(calls, "my.Denied", after="/bin/touch /home/user/it-ran")[0] == 126
    assert calls.inside("caller", "test -e /home/user/it-ran").code == 1


def test_the_caller_may_leave_the_target_to_the_policy(calls: Whole) -> None:
    """`@default` goes where `target=` says; another name does not match that rule."""
    calls.service("callee", "my.Default", "hostname\n")
    assert call(calls, "my.Default", "@default")[:2] == (0, "callee\n")
    assert call(calls, "my.Default", "''")[:2] == (0, "callee\n")
    assert call(calls, "my.Default", "sleeper")[0] == 126


def test_rules_match_by_tag_and_by_class(calls: Whole) -> None:
    """`@tag:` and `@type:` allow what carries them, and a tag taken away is gone at once."""
    calls.service("callee", "my.Tagged", "echo tagged\n")
    calls.service("callee", "my.Typed", "echo typed\n")
    assert call(calls, "my.Tagged")[1] == "tagged\n"
    assert call(calls, "my.Typed")[1] == "typed\n"
    assert call(calls, "my.Tagged", "base")[0] == 126
    assert call(calls, "my.Typed", "host")[0] == 126
    calls.policy(POLICY.replace("*             *      caller  callee          allow\n", ""))
    calls.call("admin.vm.tag.Remove+server", "callee")
    assert call(calls, "my.Tagged")[0] == 126
    calls.call("admin.vm.tag.Set+server", "callee")
    assert call(calls, "my.Tagged")[0] == 0
    calls.policy(POLICY)


def test_a_halted_target_is_started_for_a_call(calls: Whole) -> None:
    """It starts, answers, and stays up; with `autostart=no` it is refused instead."""
    assert call(calls, "my.Lazy", "sleeper") == (126, "", "Request refused\n")
    assert calls.states()["sleeper"] == "Halted"
    assert call(calls, "my.Sleeper", "sleeper") == (0, "sleeper\ncaller\n", "")
    assert calls.states()["sleeper"] == "Running"
    assert call(calls, "my.Lazy", "sleeper") == (0, "sleeper\ncaller\n", "")
    calls.shut_down("sleeper")


def test_callers_that_come_together_share_one_start(calls: Whole) -> None:
    """Twenty calls to a halted qube: all answered."""
    line = "for i in $(seq 20); do qrexec-client-vm sleeper my.Sleeper </dev/null & done; wait"
    assert sorted(calls.said("caller", line).split()) == ["caller"] * 20 + ["sleeper"] * 20
    calls.shut_down("sleeper")


@pytest.mark.parametrize(
    ("target", "service"), [("@dispvm", "my.Disposable"), ("@dispvm:base", "my.Nested")]
)
def test_a_disposable_answers_and_leaves_nothing(calls: Whole, target: str, service: str) -> None:
    """It has a name of its own, runs the service of its base, and no layer of it stays."""
    before, layers = calls.states(), calls.layers()
    code, out, err = call(calls, service, target)
    assert (code, err) == (0, "")
    name, source = out.split()
    assert name.startswith("disp")
    assert source == "caller"
    until(lambda: calls.states() == before, "the disposable is gone from the list")
    until(lambda: calls.layers() == layers, "its layers are gone from the pool")
    sockets = calls.paths.socket_dir(QubeName(name))
    until(lambda: not sockets.exists(), "its socket directory is gone")
    assert calls.audited(target=name)["code"] == 0


def test_two_disposables_share_nothing(calls: Whole) -> None:
    """What one writes the next does not see, nor does their base."""
    line = "echo mine >/home/user/secret; echo mine >/rw/secret; ls /home/user/secret"
    for _ in range(2):
        done = calls.command("qvm-run", "--dispvm=base", "--pass-io", line)
        assert (done.code, done.out) == (0, "/home/user/secret\n")
        probe = calls.command("qvm-run", "--dispvm=base", "--pass-io", "ls /home/user /rw/secret")
        assert "/home/user/secret" not in probe.out
        assert probe.code == 2
    calls.start("base")
    assert calls.inside("base", "test -e /home/user/secret -o -e /rw/secret").code == 1
    calls.shut_down("base")


def test_a_disposable_goes_when_its_caller_does(calls: Whole) -> None:
    """A call that is broken off does not leave its disposable running."""
    before = calls.states()
    calls.start("base")
    calls.service("base", "my.Staying", "echo here; exec cat\n")
    calls.shut_down("base")
    child = calls.begin("caller", "exec qrexec-client-vm @dispvm my.Staying")
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    assert any(name.startswith("disp") for name in calls.states())
    child.kill()
    calls.call("admin.vm.Kill", "caller")
    until(
        lambda: not any(name.startswith("disp") for name in calls.states()),
        "the disposable is gone",
    )
    calls.start("caller")
    assert calls.states() == before


def test_a_broken_policy_file_denies_everything_and_says_where(calls: Whole) -> None:
    """File and line stand in the broker's log and in the audit record; mended, all is well."""
    calls.service("callee", "my.Fine", "exit 0\n")
    assert call(calls, "my.Fine")[0] == 0
    calls.policy("my.Fine * caller callee allow\nmy.Fine * caller callee perhaps\n", "20-x.policy")
    assert call(calls, "my.Fine") == (126, "", "Request refused\n")
    assert call(calls, "my.Typed")[0] == 126
    record = calls.audited(service="my.Typed", code=126)
    assert "20-x.policy:2" in record["reason"]
    until(lambda: "20-x.policy:2" in calls.broker.last_words(), "the log names file and line")
    (calls.paths.etc / "policy.d/20-x.policy").unlink()
    assert call(calls, "my.Fine")[0] == 0


def test_a_changed_policy_counts_for_the_very_next_call(calls: Whole) -> None:
    """Twenty changes, each followed by one call."""
    calls.service("callee", "my.Switch", "exit 0\n")
    for turn in range(20):
        action, code = ("allow", 0) if turn % 2 else ("deny", 126)
        calls.policy(f"my.Switch * caller callee {action}\n", "10-switch.policy")
        assert call(calls, "my.Switch")[0] == code
    (calls.paths.etc / "policy.d/10-switch.policy").unlink()


def test_much_data_goes_both_ways_at_once(calls: Whole) -> None:
    """64 MiB in and 64 MiB out together, every byte right."""
    calls.service("callee", "my.Echo", "exec cat\n")
    data = bytes(range(256)) * (64 * MIB // 256)
    child = calls.begin("caller", "exec qrexec-client-vm callee my.Echo")
    assert child.stdin is not None
    assert child.stdout is not None
    stdin = child.stdin

    def feed() -> None:
        stdin.write(data)
        stdin.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    digest = hashlib.sha256()
    while chunk := child.stdout.read(MIB):
        digest.update(chunk)
    feeder.join()
    assert child.wait(PATIENCE) == 0
    assert digest.digest() == hashlib.sha256(data).digest()


def test_many_calls_at_once_lose_nothing(calls: Whole) -> None:
    """Two hundred calls of one qube run at the same time, each with its own answer."""
    calls.said("callee", "mkdir -m 777 /tmp/here /tmp/done; mkfifo -m 666 /tmp/gate", user="root")
    calls.service("callee", "my.Meet", ">/tmp/here/$1; read x </tmp/gate; >/tmp/done/$1; echo $1\n")
    line = "for i in $(seq 200); do qrexec-client-vm callee my.Meet+$i </dev/null & done; wait"
    child = calls.begin("caller", line)
    all_in = "until [ $(ls /tmp/%s | wc -l) = 200 ]; do sleep 0.02; done"
    # The gate stays open until the last one is through.
    calls.said("callee", f"{all_in % 'here'}; exec 3<>/tmp/gate; seq 200 >&3; {all_in % 'done'}")
    said, _ = child.communicate(timeout=PATIENCE)
    assert sorted(map(int, said.split())) == list(range(1, 201))


class TestQvmRun:
    """The command that people use most."""

    def test_it_passes_input_output_and_exit_code(self, calls: Whole) -> None:
        """With --pass-io, as if the command ran here."""
        line = "tr a-z A-Z; echo problem >&2; exit 7"
        done = calls.command("qvm-run", "--pass-io", "callee", line, stdin=b"quiet\n")
        assert (done.code, done.out, done.err) == (7, "QUIET\n", "problem\n")

    def test_it_starts_a_halted_qube_unless_told_not_to(self, calls: Whole) -> None:
        """--no-autostart is an error with a hint; the default starts it."""
        done = calls.command("qvm-run", "--no-autostart", "--pass-io", "sleeper", "true")
        assert done.code == 255
        assert "error: qube `sleeper` does not run\nhint: " in done.err
        assert calls.command("qvm-run", "--pass-io", "sleeper", "hostname").out == "sleeper\n"
        calls.shut_down("sleeper")

    def test_it_runs_as_the_user_that_it_is_told(self, calls: Whole) -> None:
        """-u root, and by default the qube's `default_user`."""
        assert calls.command("qvm-run", "-p", "callee", "id -un").out == "user\n"
        assert calls.command("qvm-run", "-p", "-u", "root", "callee", "id -un").out == "root\n"
        done = calls.command("qvm-run", "-p", "-u", "nobody-of-that-name", "callee", "id -un")
        assert done.code == 125

    def test_it_runs_a_service(self, calls: Whole) -> None:
        """--service, with an argument; the service sees dom0 as its caller."""
        calls.service("callee", "my.Who", 'echo "$QREXEC_REMOTE_DOMAIN:$1"; exit 5\n')
        done = calls.command("qvm-run", "--pass-io", "--service", "callee", "my.Who+x")
        assert (done.code, done.out) == (5, "dom0:x\n")
        done = calls.command("qvm-run", "--pass-io", "--service", "callee", "my.Absent")
        assert done.code == 127

    def test_it_passes_words_as_they_are(self, calls: Whole) -> None:
        """Several words are one program with arguments, untouched by any shell."""
        words = ["printf", "%s|", "two words", "$HOME", "é", "'", "-n", "a+b"]
        done = calls.command("qvm-run", "--pass-io", "callee", *words)
        assert (done.code, done.out) == (0, "two words|$HOME|é|'|-n|a+b|")

    def test_it_runs_in_a_new_disposable(self, calls: Whole) -> None:
        """--dispvm: the code passes, the disposable is gone when the command returns."""
        before = calls.states()
        done = calls.command("qvm-run", "--dispvm", "--pass-io", "hostname; exit 6")
        assert done.code == 6
        assert done.out.startswith("disp")
        assert calls.states() == before


PICTURE = "printf 'P6\\n2 1\\n255\\n......' >in.ppm"


class TestCommandsInsideAQube:
    """What qubes call standard services with."""

    def test_a_file_is_edited_in_another_qube_and_in_a_disposable(self, calls: Whole) -> None:
        """What was changed there comes back; the disposable is gone, a refusal changes nothing."""
        calls.service("callee", "qubes-open", OPENER, where="/usr/local/bin")
        before = calls.states()
        edit = "echo text >a.txt && qvm-open-in-vm callee a.txt && qvm-open-in-dvm a.txt"
        assert calls.said("caller", f"{edit} && cat a.txt").startswith("text\ncallee\ndisp")
        until(lambda: calls.states() == before)
        done = calls.inside("caller", "qvm-open-in-vm sleeper a.txt")
        assert (done.code, done.err) == (126, "Request refused\n")
        assert calls.inside("caller", "qvm-open-in-vm callee http://h").code == 126

    def test_commands_logs_and_pictures(self, calls: Whole) -> None:
        """Any command with its input, lines that are kept, a picture made harmless."""
        run = "echo in | qvm-run-vm --no-gui callee 'cat; hostname; exit 3'; echo $?"
        assert calls.said("caller", run) == "in\ncallee\n3"
        assert calls.said("caller", "qvm-run-vm -x callee printf '<%s>' 'a  b'") == "<a  b>"
        calls.said("caller", "qvm-log callee", stdin=b"<3>hot\n")
        assert calls.said("callee", "cat /rw/log/qubes-remote/caller.log").endswith(" err: hot")
        calls.said("caller", f"{PICTURE} && qvm-convert-img in.ppm out.png && test -s out.png")
