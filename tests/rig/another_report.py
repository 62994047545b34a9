"""Runs on the drone: another_report.py REPORT SAMPLES

Puts a copy of REPORT with other samples into the spool: SAMPLES random figures, which make it as long as the report of
a long run. The drone's own key signs it, as in `bench`. Prints its ID.
"""

import json
import random
import sys
from dataclasses import replace

from edgeprune_device.reports.report import BenchReport
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys

path, count = sys.argv[1], int(sys.argv[2])
with open(path) as file:
    report = BenchReport.from_json(json.load(file))
stages = {
    name: {**stage, "samples": count, "samples_ns": [random.randrange(10**9) for _ in range(count)]}
    for name, stage in report.stages.items()
}
report = replace(report, stages=stages, begins_ns=tuple(range(count)), signature=None)
print(Spool().put(report.sign(keys.load_or_create("report")).to_bytes()))
