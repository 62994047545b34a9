import json
import re

from edgeprune_device import strict_json
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys

from .calls import QUICK, edgeprune


def test_reports_stay_in_the_spool_until_they_are_collected(capsys, bundle, tmp_path):
    args = ["bench", str(bundle.path), "--runtime", "null", *QUICK]
    rows = tmp_path / "frames.csv"
    code, out, _ = edgeprune(capsys, *args, "--csv", str(rows))
    (entry,) = Spool().entries()
    assert code == 0 and re.search(rf"^report +{entry.id[:12]}, stored for edgeprune collect in ", out, re.M)
    report = BenchReport.from_json(strict_json.loads(Spool().read(entry.id), "r"))
    assert bytes(report.verify()) == bytes(keys.load_or_create("report").verify_key)
    lines = rows.read_text().splitlines()
    assert lines[0] == "begin_s,decode_ms,pre_ms,infer_ms,post_ms,end_to_end_ms"
    assert len(lines) == 1 + report.stages["infer"]["samples"]
    edgeprune(capsys, *args, "--no-spool")
    assert len(Spool().entries()) == 1
    stick = tmp_path / "stick"
    stick.mkdir()
    code, out, _ = edgeprune(capsys, "spool", "--to", str(stick))
    assert code == 0 and "1 copied to" in out and "1 waiting, 0 delivered" in out
    assert [path.name for path in stick.iterdir()] == [f"{entry.id}.json"]
    entry.path.rename(Spool().folder / "delivered" / entry.path.name)
    code, out, _ = edgeprune(capsys, "spool", "--prune", "--json")
    assert code == 0 and json.loads(out)["pruned"] == [entry.id] and not Spool().entries()
    code, _, err = edgeprune(capsys, "spool", "--to", str(tmp_path / "nowhere"))
    assert code == 2 and "no such folder" in err
