import json
import re

from edgeprune_device.target import Target

from .calls import edgeprune


def test_targets_lists_every_target(capsys):
    code, out, _ = edgeprune(capsys, "targets")
    assert code == 0 and all(re.search(rf"^{name} ", out, re.M) for name in Target.names())
    code, out, _ = edgeprune(capsys, "targets", "--json")
    assert [Target.from_json(entry).name for entry in json.loads(out)] == Target.names()
