import inspect

import pytest
from edgeprune_device import errors

EXIT_CODES = {
    "EdgepruneError": 2,
    "InputError": 2,
    "RuntimeUnavailable": 2,
    "DeviceError": 2,
    "GateError": 1,
    "SignatureError": 1,
    "Interrupted": 130,
}


def test_every_error_is_exported_and_has_its_exit_code():
    codes = {name: kind.exit_code for name, kind in inspect.getmembers(errors, inspect.isclass)}
    assert codes == EXIT_CODES
    assert {*EXIT_CODES, "reason"} == set(errors.__all__)


@pytest.mark.parametrize(
    "kind, parent",
    [
        ("RuntimeUnavailable", "InputError"),
        ("DeviceError", None),
        ("SignatureError", "GateError"),
        ("Interrupted", None),
    ],
)
def test_error_tree_has_these_parents(kind, parent):
    assert issubclass(getattr(errors, kind), getattr(errors, parent or "EdgepruneError"))
    if parent is None:  # neither Ctrl-C nor a failing GPU is bad input or a failed gate
        assert not issubclass(getattr(errors, kind), (errors.InputError, errors.GateError))
