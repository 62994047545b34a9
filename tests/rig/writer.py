"""Runs on the machine whose power is cut: stores one report after another in the spool, and prints each stored one."""

import os
import random

from edgeprune_device.reports.spool import Spool

spool = Spool("/var/spool/edgeprune")
with open("/proc/sys/kernel/random/boot_id") as file:
    boot = file.read().strip()
for number in range(10**6):
    body = os.urandom(random.randrange(1000, 100_000)).hex()
    identity = spool.put(f'{{"boot":"{boot}","number":{number},"body":"{body}"}}'.encode())
    print(f"put {identity}", flush=True)
