"""ssh: the link to a drone, with real OpenSSH on both sides."""

import contextlib
import hashlib
import os
import random
import re
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from edgeprune_device.errors import InputError, SignatureError

from edgeprune.drones import ssh

from ..loopback import SSH, Drone

pytestmark = pytest.mark.needs("ssh", "sshd")


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    drone = Drone(tmp_path_factory.mktemp("drone"), "/usr/bin:/bin")
    yield drone
    drone.close()


@pytest.fixture
def drone(board, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {board.config}")
    monkeypatch.setattr(ssh, "time", types.SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))
    board.proxy.budgets, board.proxy.silent, board.proxy.connections, board.proxy.carried = [None], False, 0, 0
    board.configure()
    board.known(board.folder / "ssh/host.pub")
    return board


@pytest.fixture
def link(drone, notes):
    with ssh.Link("drone", say=notes.append) as link:
        yield link


@pytest.fixture
def notes():
    return []


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def command_lines():
    """The command lines of this machine's processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended at this moment
            yield path.read_bytes()


@pytest.mark.parametrize(
    "text, address, port",
    [
        ("drone", "drone", None),
        ("pilot@drone", "pilot@drone", None),
        ("pilot@drone:2222", "pilot@drone", 2222),
        ("pilot@192.168.55.1", "pilot@192.168.55.1", None),
        ("pilot@[fe80::1%eth0]:22", "pilot@fe80::1%eth0", 22),
    ],
)
def test_drone_addresses_follow_ssh(text, address, port):
    assert ssh.parse(text) == (address, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-oProxyCommand=x",
        "a@-oProxyCommand=x",
        "a b",
        "a@b:",
        "a@b:0",
        "a@b:70000",
        "a/b",
        "a@b@c",
        "x\n",
        "a@b\x1b",
        "a@$(id)",
        "$USER@b",
        "a@b;id",
        "a@`id`",
    ],
)
def test_addresses_that_ssh_could_read_as_options_are_refused(text):
    with pytest.raises(InputError, match="not a drone"):
        ssh.parse(text)


def test_the_users_agent_and_display_are_not_forwarded(tmp_path):
    """No user configuration forwards them. ssh -G prints the settings that ssh would use."""
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  ForwardAgent yes\n  ForwardX11 yes\n  PermitLocalCommand yes\n  LocalCommand touch here\n"
        "  Tunnel yes\n  GSSAPIDelegateCredentials yes\n  DynamicForward 1080\n"
    )

    def settings(*options):
        done = subprocess.run(["ssh", "-G", "-F", str(config), *options, "drone"], capture_output=True, text=True)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)

    names = ("forwardagent", "forwardx11", "permitlocalcommand", "tunnel", "gssapidelegatecredentials")
    assert [settings()[name] for name in names] == ["yes", "yes", "yes", "point-to-point", "yes"]
    ours = [word for pair in ssh._OPTIONS.items() for word in ("-o", "=".join(pair))]
    assert [settings(*ours)[name] for name in names] == ["no", "no", "no", "false", "no"]


def test_a_command_gets_its_arguments_unchanged(link):
    words = ["a b", "'", '"', "$HOME", "`x`", "a\nb", "", "*", "\\", "ü", "!x", ";exit 1"]
    assert link.run('for w in "$@"; do printf "%s\\0" "$w"; done', *words) == b"".join(
        w.encode() + b"\0" for w in words
    )


def test_one_connection_serves_all_commands(link, drone):
    for _ in range(5):
        link.run("true")
    assert drone.proxy.connections == 1
    assert link.run("cat", input=b"abc\0") == b"abc\0"
    assert link.run('echo "$HOME"').decode() == f"{drone.home}\n"


def test_ssh_asks_for_a_password_once(drone, notes, tmp_path, monkeypatch):
    """The test uses a key's passphrase and counts how often ssh asks."""
    key = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    with open(drone.folder / "ssh/authorized", "a") as file:
        file.write(key.with_suffix(".pub").read_text())
    ask = tmp_path / "ask"
    ask.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\necho secret\n")
    ask.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(ask))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    drone.configure(IdentityFile=str(key), BatchMode="no")
    (drone.home / "file").write_bytes(b"abc")
    with ssh.Link("drone", say=notes.append) as link:
        for _ in range(3):
            assert link.run("echo x") == b"x\n"
        link.get(f"{drone.home}/file", tmp_path / "local", 3, sha256(b"abc"))
    assert (tmp_path / "log").read_text() == "asked\n" and notes == []


def test_a_failed_commands_own_message_is_shown(link):
    with pytest.raises(ssh.RemoteError, match=r"^drone: cat: /none: No such file") as caught:
        link.run("cat /none")
    assert caught.value.code == 1 and caught.value.exit_code == 2
    with pytest.raises(ssh.RemoteError, match="exit status 3"):
        link.run("exit 3")
    with pytest.raises(ssh.RemoteError) as caught:
        link.run("printf '\\033[2Jx\\n' >&2; exit 1")
    assert "\x1b" not in str(caught.value)


def test_an_endless_answer_is_cut_off(link):
    with pytest.raises(InputError, match="expected at most 1000 bytes"):
        link.run("yes", limit_bytes=1000)
    assert link.run("echo on") == b"on\n"


def test_an_endless_command_is_stopped(link):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"did not finish within 0\.5 s"):
        link.run("sleep 20", timeout_s=0.5)
    assert time.monotonic() - started < 10


def test_a_greeting_of_the_login_shell_is_skipped(link, drone):
    (drone.home / ".bashrc").write_text("echo hello; echo; echo edgeprune\n")
    try:
        assert subprocess.run([SSH, "-F", drone.config, "drone", "true"], capture_output=True).stdout.startswith(
            b"hello"
        )
        assert link.run("echo x") == b"x\n"
        (drone.home / ".bashrc").write_text("yes | head -c 1000000\n")
        with pytest.raises(InputError, match="the login shell prints more than"):
            link.run("echo x")
    finally:
        (drone.home / ".bashrc").unlink()


def test_the_users_terminal_settings_are_overridden(link, drone):
    drone.configure(RemoteCommand="top", RequestTTY="force", LocalForward="1 127.0.0.1:1", ExitOnForwardFailure="yes")
    assert link.run("printf 'a\\nb'") == b"a\nb"


def test_no_process_or_folder_is_left_after_close_or_kill(drone, tmp_path):
    code = (
        "import os, sys, signal\nfrom edgeprune.drones.ssh import Link\nlink = Link('drone')\nlink.connect()\n"
        "print(link._master._popen.pid, link._folder, flush=True)\n"
        "link.close() if sys.argv[1] == 'close' else os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    drone.configure(ControlMaster="auto", ControlPersist="600")
    for how in ("close", "kill"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, timeout=60)
        pid, folder = done.stdout.split()
        assert done.returncode == (0 if how == "close" else -9), done.stderr
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not os.path.exists(f"/proc/{pid}")
        assert not subprocess.run(["pgrep", "-f", folder], capture_output=True).stdout
        assert how == "kill" or not os.path.exists(folder)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"IdentityFile": "{folder}/ssh/stranger"}, "login refused.*ssh-copy-id drone"),
        ({"User": "nobodyatall"}, "unknown user"),
        ({"User": "nobodyatall", "LogLevel": "QUIET"}, "unknown user"),
        ({"HostName": "no.such.host.invalid"}, "unknown host"),
        ({"Port": "1"}, "no SSH server answers; start sshd"),
        ({"NoSuchOption": "yes"}, "ssh failed: .*[Bb]ad configuration"),
    ],
)
def test_an_unreachable_drone_is_reported_at_once_in_one_line(drone, notes, options, words):
    drone.configure(**{key: value.format(folder=drone.folder) for key, value in options.items()})
    with ssh.Link("drone", say=notes.append) as link, pytest.raises(ssh.LinkError, match=words) as caught:
        link.run("true")
    assert notes == [] and "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_an_unknown_or_changed_host_key_is_refused(drone, notes):
    drone.known(None)
    with (
        ssh.Link("drone", say=notes.append) as link,
        pytest.raises(ssh.LinkError, match="unknown host key; run ssh drone"),
    ):
        link.run("true")
    drone.known(drone.folder / "ssh/stranger.pub")
    with ssh.Link("drone", say=notes.append) as link, pytest.raises(ssh.LinkError, match="the host key has changed"):
        link.run("true")
    assert notes == []


def test_missing_ssh_error_names_the_package(monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SSH", "/no/ssh")
    with ssh.Link("drone") as link, pytest.raises(InputError, match=r"/no/ssh: cannot be started.*apt install"):
        link.run("true")


@pytest.mark.parametrize(
    "output, words, lasting",
    [
        ("ssh: connect to host 10.0.0.9 port 22: No route to host", "no route", None),
        ("ssh: connect to host 10.0.0.9 port 22: Connection timed out", "no answer", False),
        ("Timeout, server drone not responding.", "no answer", False),
        ("kex_exchange_identification: read: Connection reset by peer", "the link broke", False),
        ("client_loop: send disconnect: Broken pipe", "the link broke", False),
        ("Unable to negotiate with 1.2.3.4 port 22: no matching host key type found. Their offer: ssh-rsa",
         "no matching host key type", True),
        ("something new\x1b[2J\n", r"something new\?\[2J", False),
        ("", "the link broke", False),
    ],
)  # fmt: skip
def test_ssh_errors_are_explained(output, words, lasting):
    error = ssh.explain(output, "pilot@drone")
    assert str(error).startswith("pilot@drone: ") and re.search(words, str(error)) and error.lasting is lasting


def test_a_fetched_file_is_unchanged(link, drone, tmp_path):
    for size in (0, 1, 65536, 300_001):
        data = noise(size)
        (drone.home / "file name").write_bytes(data)
        link.get(f"{drone.home}/file name", tmp_path / "local", size, sha256(data))
        assert (tmp_path / "local").read_bytes() == data
    assert [p.name for p in tmp_path.glob("*local*")] == ["local"]


def test_a_link_that_breaks_five_times_transfers_little_twice(link, drone, notes, tmp_path):
    data = noise(3_000_000)
    (drone.home / "file").write_bytes(data)
    drone.proxy.budgets = [500_000] * 5 + [None]
    link.get(f"{drone.home}/file", tmp_path / "local", len(data), sha256(data))
    assert (tmp_path / "local").read_bytes() == data
    assert drone.proxy.connections == 6 and len(notes) == 5
    assert all(re.fullmatch(r"drone: the link broke; trying again in \d s \(\d of 8\)", line) for line in notes)
    assert drone.proxy.carried < len(data) + 5 * 250_000  # the bytes under way are lost


def test_a_permanently_broken_link_is_given_up_and_the_next_call_continues(drone, notes, tmp_path):
    data = noise(1_000_000)
    (drone.home / "file").write_bytes(data)
    drone.proxy.budgets = [700_000, 500]
    gave_up = "gave up after 4 tries; run the same command again to continue"
    with ssh.Link("drone", retries=3, say=notes.append) as link, pytest.raises(ssh.LinkError, match=gave_up):
        link.get(f"{drone.home}/file", tmp_path / "local", len(data), sha256(data))
    assert [line.split("again ")[1] for line in notes] == ["in 1 s (1 of 3)", "in 2 s (2 of 3)", "in 4 s (3 of 3)"]
    (part,) = tmp_path.glob(".local.part")
    held = part.stat().st_size
    assert 65536 < held < 700_000 and not (tmp_path / "local").exists()
    drone.proxy.budgets, drone.proxy.carried = [None], 0
    with ssh.Link("drone") as link:
        link.get(f"{drone.home}/file", tmp_path / "local", len(data), sha256(data))
    assert (tmp_path / "local").read_bytes() == data and drone.proxy.carried < len(data) - held + 50_000


def test_a_silent_link_is_detected(drone, notes, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {drone.config} -o ServerAliveInterval=1 -o ServerAliveCountMax=2")
    with ssh.Link("drone", say=lambda text: (notes.append(text), setattr(drone.proxy, "silent", False))) as link:
        link.connect()
        drone.proxy.silent = True
        started = time.monotonic()
        assert link.run("echo back") == b"back\n"
    assert time.monotonic() - started < 10 and len(notes) == 1


def test_a_hanging_card_is_detected_in_both_directions(drone, notes, tmp_path, monkeypatch):
    """sshd still answers, so ssh itself would wait forever."""
    monkeypatch.setattr(ssh, "_STILL_S", 0.5)
    os.mkfifo(drone.home / "hangs")
    with ssh.Link("drone", retries=1, say=notes.append) as link, pytest.raises(ssh.LinkError, match="gave up after 2"):
        link.get(f"{drone.home}/hangs", tmp_path / "x", 10, sha256(b"x"))
    # `tail` waits in the kernel until another process opens the FIFO, as it would wait for the card.
    os.close(os.open(drone.home / "hangs", os.O_RDWR))
    until = time.monotonic() + 10
    while any(f"{drone.home}/hangs".encode() in words for words in command_lines()):
        assert time.monotonic() < until, "a process of the drone is left"
        time.sleep(0.02)
    (tmp_path / "y").write_bytes(noise(300_000))
    monkeypatch.setattr(ssh, "_WRITE", "exec sleep 60")
    with ssh.Link("drone", retries=1, say=notes.append) as link, pytest.raises(ssh.LinkError, match="gave up after 2"):
        link.put(tmp_path / "y", f"{drone.home}/y")
    assert len(notes) == 2 and "no answer" in notes[0]


def test_a_drone_that_gives_a_byte_now_and_then_is_given_up(drone, notes, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "_STILL_S", 0.5)
    os.mkfifo(drone.home / "drips")
    over = threading.Event()

    def drip():
        with open(drone.home / "drips", "wb", buffering=0) as stream, contextlib.suppress(BrokenPipeError):
            while not over.wait(0.02):
                stream.write(b"x")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    began = time.monotonic()
    with ssh.Link("drone", retries=0, say=notes.append) as link, pytest.raises(ssh.LinkError, match="gave up after 1"):
        link.get(f"{drone.home}/drips", tmp_path / "x", 1 << 29, sha256(b"x"))
    over.set()
    assert time.monotonic() - began < 20


def test_a_file_that_does_not_match_its_hash_is_fetched_twice_and_kept(link, drone, tmp_path):
    (drone.home / "file").write_bytes(b"other")
    with pytest.raises(SignatureError, match=r"damaged \(.* after two transfers\); check the drone's disk"):
        link.get(f"{drone.home}/file", tmp_path / "local", 5, sha256(b"right"))
    assert (tmp_path / "local").read_bytes() == b"other"


def test_a_partial_file_with_other_content_is_discarded(link, drone, tmp_path):
    data = noise(100_000)
    (drone.home / "file").write_bytes(data)
    for wrong in (b"x" * 1000, b"x" * 100_000, b"x" * 200_000):
        (tmp_path / ".local.part").write_bytes(wrong)
        link.get(f"{drone.home}/file", tmp_path / "local", len(data), sha256(data))
        assert (tmp_path / "local").read_bytes() == data


def test_a_file_longer_than_announced_is_cut_off(link, drone, tmp_path):
    data = noise(1000)
    with pytest.raises(SignatureError, match="damaged"):
        link.get("/dev/zero", tmp_path / "local", len(data), sha256(data))
    assert (tmp_path / "local").stat().st_size == 1000


def test_a_missing_file_is_reported(link, drone, tmp_path):
    with pytest.raises(ssh.RemoteError, match="No such file"):
        link.get(f"{drone.home}/gone", tmp_path / "local", 5, "0" * 64)


def test_two_simultaneous_transfers_do_not_mix(link, drone, tmp_path):
    with ssh._held(tmp_path / ".local.part"), pytest.raises(InputError, match="another edgeprune is fetching"):
        link.get(f"{drone.home}/file", tmp_path / "local", 5, "0" * 64)


def test_a_full_host_disk_leaves_no_partial_file(link, drone, small_disk):
    data = noise(3_000_000)
    (drone.home / "file").write_bytes(data)
    with pytest.raises(InputError, match=r"no space left on device\); the drone keeps its copy"):
        link.get(f"{drone.home}/file", small_disk / "local", len(data), sha256(data))
    assert list(small_disk.iterdir()) == []


def test_a_full_drone_disk_is_one_line(link, drone, small_disk, tmp_path):
    (tmp_path / "local").write_bytes(noise(3_000_000))
    with pytest.raises(ssh.RemoteError, match=r"^drone: the drone's disk is full .*No space left"):
        link.put(tmp_path / "local", f"{small_disk}/remote")


def test_a_sent_file_is_unchanged_and_not_sent_twice(link, drone, tmp_path):
    for size in (0, 1, 65536, 300_001):
        (tmp_path / "local").write_bytes(noise(size))
        link.put(tmp_path / "local", f"{drone.home}/new folder/remote")
        assert (drone.home / "new folder/remote").read_bytes() == noise(size)
    assert [p.name for p in (drone.home / "new folder").iterdir()] == ["remote"]
    before = (drone.home / "new folder/remote").stat().st_mtime_ns
    link.put(tmp_path / "local", f"{drone.home}/new folder/remote")
    assert (drone.home / "new folder/remote").stat().st_mtime_ns == before


def test_sending_survives_a_broken_link(link, drone, notes, tmp_path):
    data = noise(3_000_000)
    (tmp_path / "local").write_bytes(data)
    drone.proxy.budgets = [700_000] * 4 + [None]
    link.put(tmp_path / "local", f"{drone.home}/remote")
    assert (drone.home / "remote").read_bytes() == data
    assert 4 <= drone.proxy.connections <= 6 and notes
    assert not (drone.home / "remote.part").exists()


def test_a_partial_file_on_the_drone_with_other_content_is_discarded(link, drone, tmp_path):
    (tmp_path / "local").write_bytes(noise(200_000))
    for size in (70_000, 200_000, 500_000):
        (drone.home / "remote.part").write_bytes(b"x" * size)
        link.put(tmp_path / "local", f"{drone.home}/remote")
        assert (drone.home / "remote").read_bytes() == noise(200_000)
        (drone.home / "remote").unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], stderr=subprocess.DEVNULL)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_another_link_has_its_own_connections_and_never_asks_the_user(link, drone):
    link.connect()
    with link.another() as other:
        assert other.run("echo a") == b"a\n" and other.run("echo b") == b"b\n"
    assert drone.proxy.connections == 3
    drone.configure(IdentityFile=f"{drone.folder}/ssh/stranger", BatchMode="no", NumberOfPasswordPrompts="3")
    with link.another() as other, pytest.raises(ssh.LinkError, match="login refused") as caught:
        other.run("true")
    assert caught.value.lasting and link.run("echo c") == b"c\n"


def test_another_thread_can_end_a_login(link, drone):
    link.connect()
    drone.proxy.silent = True
    other, caught = link.another(), []

    def use():
        try:
            other.run("true")
        except ssh.LinkError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    time.sleep(0.5)
    other.close()
    thread.join(5)
    drone.proxy.silent = False
    assert caught and not thread.is_alive()


def test_follow_does_not_repeat_lines_after_a_broken_link(link, drone, notes):
    script = 'for n in $(seq 30); do echo "$n $(cat "$1")"; head -c 20000 /dev/zero >&2; done; exit 3'
    (drone.home / "word").write_text("x")
    drone.proxy.budgets = [200_000, None]
    lines = []
    with pytest.raises(ssh.RemoteError) as caught:
        link.follow(script, f"{drone.home}/word", line=lambda text: lines.append(text.decode()))
    assert caught.value.code == 3 and len(notes) == 1
    assert lines == [f"{n} x\n" for n in range(1, 31)]


def test_follow_stops_at_an_endless_output(link):
    with pytest.raises(InputError, match="the answer is longer than"):
        link.follow("yes", line=lambda text: None)


def test_a_command_that_never_ends_is_followed_within_a_limit(link):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"did not finish within 1 s"):
        link.follow("sleep 60", line=lambda text: None, limit_s=1)
    assert time.monotonic() - began < 30


def test_a_returning_drone_is_found_before_the_pause_ends(drone, notes, monkeypatch):
    slept = []
    monkeypatch.setattr(ssh, "time", types.SimpleNamespace(sleep=slept.append))
    with ssh.Link("drone", say=notes.append) as link:
        link.connect()
        drone.proxy.budgets = [500] * 5 + [None]
        link._drop()
        assert link.run("echo back") == b"back\n"
    # Pauses of 1, 2 and 4 s passed; an attempt during the pause of 8 s found the drone.
    assert [line.split("again ")[1] for line in notes] == [f"in {2**n} s ({n + 1} of 8)" for n in range(len(notes))]
    assert max(slept) <= 3 and sum(slept) < sum(2**n for n in range(len(notes)))
