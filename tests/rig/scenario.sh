#!/bin/sh
# Steps on the machine of test_systemd.py: the service of the image, a good release, a bad one, and kills of the
# processes that run them. Each step prints one line.
exec >/dev/ttyAMA0 2>&1
edgeprune=/opt/edgeprune/agent/bin/edgeprune
export EDGEPRUNE_HOME=/root/.config/edgeprune HOME=/root
root=/opt/edgeprune

state() { sed -n 's/^ *"state": "\([a-z]*\)".*/\1/p' $root/current/release.json; }
field() { sed -n "s/.*\"$1\": \"\{0,1\}\([^,\"]*\).*/\1/p" $root/run/status.json; }
until_() { # until_ SECONDS COMMAND…
  left=$1; shift
  while ! "$@" && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
  "$@"
}
is_good() { [ "$(state)" = good ]; }
runs() { [ "$(field state)" = running ] && [ "$(field release)" = "$(basename "$(readlink $root/current)")" ]; }

until_ 300 is_good && echo "step image $(systemctl is-active edgeprune) $(state) $(readlink $root/current)"

$edgeprune install /data/two.epb --health 5 >/tmp/two 2>&1
echo "step two $? $(systemctl is-active edgeprune) $(state) $(readlink $root/current)"
runs && echo "step runs $(field release)"

$edgeprune install /data/three.epb --health 5 --unit mine >/tmp/three 2>&1
echo "step three $? $(state) $(readlink $root/current)"
tail -n 1 /tmp/three | sed 's/^/step said /'

before=$(systemctl show -P NRestarts edgeprune)
kill -9 "$(systemctl show -P MainPID edgeprune)"
again() { [ "$(systemctl show -P NRestarts edgeprune)" -gt "$before" ] && systemctl -q is-active edgeprune && runs; }
until_ 120 again && echo "step supervisor $(systemctl is-active edgeprune) $(readlink $root/current)"

worker=$(cat /proc/"$(field pid)"/task/*/children)
kill -9 $worker
replaced() { [ "$(field restarts)" -ge 1 ] && runs; }
until_ 120 replaced && echo "step worker $(field restarts) $(readlink $root/current)"
echo "step end"
