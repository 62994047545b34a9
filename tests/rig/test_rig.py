"""Tests of the rig itself: the drone is an arm64 machine, and a failing link really fails."""

import sys
import time

#: An unused address (RFC 5737).
SOMEWHERE = "192.0.2.1"
#: Counts the answers of the drone to 400 echo requests.
PING = """
import os, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE: room for all answers
s.settimeout(1)
def packet(n):
    head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, n)
    total = sum(struct.unpack("!4H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, os.getpid() & 0xFFFF, n)
for n in range(400):
    s.sendto(packet(n), ("10.77.0.2", 0))
got = set()
try:
    while len(got) < 400:
        kind, code, _, identity, n = struct.unpack("!BBHHH", s.recv(100)[20:28])
        if kind == 0 and identity == os.getpid() & 0xFFFF:
            got.add(n)
except TimeoutError:
    pass
print(len(got))
"""


def test_drone_is_a_separate_arm64_machine_reached_over_ssh(ground, drone):
    done = ground.ssh("uname -m; hostname; od -An -tx1 -j18 -N2 /usr/bin/python3.11; ls /proc | grep -c '^1$'")
    assert done.stdout.split() == ["aarch64", "drone", "b7", "00", "1"], done.stderr


def test_drone_has_no_internet_and_no_compiler(drone):
    tried = drone.exec(f"python3 -c 'import socket; socket.create_connection((\"{SOMEWHERE}\", 80), 5)'", check=False)
    assert "Network is unreachable" in tried.stderr
    assert drone.exec("command -v cc gcc clang make", check=False).stdout == ""


def test_cut_link_is_silent_and_can_be_restored(ground, drone):
    drone.link.cut()
    assert ground.run("ssh", "-o", "ConnectTimeout=1", "root@drone", "true").returncode == 255
    drone.link.heal()
    assert ground.ssh("echo back").stdout == "back\n"


def test_lossy_link_loses_the_set_share_of_packets(ground, drone):
    def answered():
        return int(ground.run(sys.executable, "-c", PING).stdout)

    assert answered() == 400
    drone.link.lossy(20)
    assert 0.64 * 400 - 60 < answered() < 0.64 * 400 + 60  # both ways; 6 sigma
    drone.link.lossy(0)
    assert answered() == 400


def test_slow_link_has_the_set_rate(ground, drone):
    drone.link.rate(1000)
    started = time.monotonic()
    assert len(ground.ssh("head -c 300000 /dev/zero | tr '\\0' x").stdout) == 300_000
    assert 1.5 < time.monotonic() - started < 30


def test_full_disk_refuses_data_until_it_is_emptied(drone):
    drone.fill_disk()
    full = drone.exec("head -c 100000 /dev/zero >/root/file", check=False)
    assert full.returncode and "No space left" in full.stderr
    drone.empty_disk()
    drone.exec("head -c 100000 /dev/zero >/root/file && rm /root/file")


def test_written_files_survive_kill_and_start(ground, drone):
    drone.exec("echo kept >/root/kept; sleep 100 >/dev/null 2>&1 &")
    drone.kill()
    assert not drone.on
    drone.start()
    assert ground.ssh("cat /root/kept; rm /root/kept; pgrep sleep").stdout == "kept\n"


def test_readings_of_a_fake_board_change_on_the_drone(drone, tmp_path):
    tree = tmp_path / "sys"
    (tree / "class/thermal").mkdir(parents=True)
    (tree / "class/thermal/temp").write_text("45000\n")
    drone.kill()
    drone.board(tree)
    drone.start()
    assert drone.exec("cat /sys/class/thermal/temp /sys/devices/system/cpu/possible").stdout == "45000\n0-1\n"
    (drone.sys / "class/thermal/temp").write_text("46000\n")
    assert drone.exec("cat /sys/class/thermal/temp").stdout == "46000\n"
    drone.kill()
    drone.board(None)
