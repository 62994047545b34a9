"""resume: a record that is not ours."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.console.progress import Reporter
from edgeprune.workflow import build

from ..builds import options


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"schema_version": 9, "inputs": {}, "stages": []}'])
def test_a_record_that_is_not_ours(inputs, tmp_path, content):
    (tmp_path / "build.json").write_text(content)
    with pytest.raises(InputError, match="not the record of a build"):
        build.run_build(options(inputs), tmp_path, Reporter(quiet=True), resume=True)
