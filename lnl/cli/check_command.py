"""`lnl check`: whether a method or a network of one's own keeps the contract that the package's own ones keep."""

from __future__ import annotations

import argparse

from lnl.cli.flags import COMPLETE, ERROR, Commands, UsageError


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    parser = commands.add_parser("check", help="check that a method or a network of your own keeps the contract")
    parser.add_argument("name", help="my_method.py, my_network.py:function, package.module, or an installed method")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Train for a few steps under each condition and print a line for each: what holds, or what to do."""
    from lnl import methods
    from lnl.networks import own
    from lnl.system import user_code
    from lnl.trial import contract

    if options.name in methods.names():
        raise UsageError(f"'{options.name}' is a method of the package itself, whose tests check it: give a file.")
    if (reference := methods.reference(options.name)) is None:
        methods.load(options.name)  # which says that there is none
    name = user_code.normalised(options.name)
    is_method = any(hasattr(user_code.load(reference or name), part) for part in methods.PARTS)
    (methods.load if is_method else own.builder)(name)  # refuse in a sentence what is neither
    failed = 0
    for check in contract.METHOD_CHECKS if is_method else contract.NETWORK_CHECKS:
        reason = contract.broken(name, check)
        print(f"failed  {check.says}: {reason}" if reason else f"ok      {check.says}", flush=True)
        failed += bool(reason)
    kind = "method" if is_method else "network"
    print(f"{name} breaks {failed} of the contract's clauses." if failed else f"{name} is a {kind} for every study.")
    return ERROR if failed else COMPLETE
