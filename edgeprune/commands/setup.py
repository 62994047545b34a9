"""The `edgeprune setup` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.option import Flag, Option, Text

from edgeprune.commands import deployment

_OWN = (
    Option("name", Text(), "name of the drone on this host (default: its host name or ssh alias)", metavar="NAME"),
    Option(
        "re_enrol",
        Flag(),
        "accept the drone's new report key, for example after the drone was reflashed",
        default=False,
    ),
)
HELP = "install the agent on a drone over SSH, without internet on the drone, and exchange keys"


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune setup`."""
    deployment.drone(parser)
    parser.add_argument(
        "--with", action="append", default=[], dest="extras", metavar="EXTRA",
        help="add an optional runtime or library: ort, openvino, opencv, cuda or pycuda; may be repeated",
    )  # fmt: skip
    for option in _OWN:
        option.add(parser)
    deployment.retries().add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune setup` with parsed arguments, and print the result."""
    import sys

    from edgeprune_device.agent import HOME_COMMAND

    from edgeprune.drones import setup
    from edgeprune.drones.ssh import Link
    from edgeprune.drones.store import Store

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with Link(args.target, retries=args.retries, say=say) as link:
        name = args.name or link.name
        extras = [extra for text in args.extras for extra in text.split(",") if extra]
        agent = setup.install(link, name, extras=extras, re_enrol=args.re_enrol, say=say)
    for identity in Store().promote():
        say(f"report {identity[:12]}: accepted, because its key is enrolled now")
    print(f"agent       {agent.path}")
    elsewhere = f"not linked, because ~/.local/bin/edgeprune on the drone is another program; use ~/{HOME_COMMAND}"
    print(f"command     {agent.command or elsewhere}")
    print(f"report key  {agent.fingerprint}, {'enrolled' if agent.enrolled else 'known'} here as {name}")
    print(f"bundles     this host's bundles are trusted on the drone: {agent.trusted_as}")
    print(f"\n{agent.doctor}")
    if not agent.healthy:
        say("warning: the agent is installed, but a part that it needs is missing on the drone; see above")
