"""A command as the user calls it, in this process."""

from edgeprune_device import cli

QUICK = ["--seconds", "0.05", "--warmup", "0.05", "--threads", "1"]


def edgeprune(capsys, *args):
    code = cli.main(list(args))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err
