"""The `edgeprune setup` command."""

from __future__ import annotations

from edgeprune.commands import options

HELP = "install the agent on a drone over SSH, without internet there, and exchange keys"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune setup`."""
    options.drone(parser)
    parser.add_argument(
        "--with", action="append", default=[], dest="extras", metavar="EXTRA",
        help="add an optional runtime or library: ort, opencv, cuda or pycuda; may be repeated",
    )  # fmt: skip
    parser.add_argument("--name", help="what the drone is called here (default: its host name or ssh alias)")
    parser.add_argument(
        "--re-enrol", action="store_true", help="the drone has a new report key (flashed anew): take it"
    )
    options.retries(parser)


def run(args) -> None:
    """Run `edgeprune setup` with parsed arguments, and print the result."""
    import sys

    from edgeprune.drones import setup
    from edgeprune.drones.ssh import Link
    from edgeprune.drones.store import Store

    def say(text):
        print(text, file=sys.stderr, flush=True)

    with Link(args.target, retries=args.retries, say=say) as link:
        name = args.name or link.name
        extras = [extra for text in args.extras for extra in options.splitted(text)]
        agent = setup.install(link, name, extras=extras, re_enrol=args.re_enrol, say=say)
    for identity in Store().promote():
        say(f"report {identity[:12]}: waited here for this key, and counts now")
    print(f"agent       {agent.path}")
    elsewhere = "not linked: ~/.local/bin/edgeprune there is not ours; use ~/.local/share/edgeprune/agent/bin/edgeprune"
    print(f"command     {agent.command or elsewhere}")
    print(f"report key  {agent.fingerprint}, {'enrolled' if agent.enrolled else 'known'} here as {name}")
    print(f"bundles     of this host are trusted there: {agent.trusted_as}")
    print(f"\n{agent.doctor}")
    if not agent.healthy:
        say("warning: the agent is installed, but something that it needs is missing there: see above")
