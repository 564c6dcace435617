"""`python -m adversary KIND[:FRACTION] …`, with the options of `commonweight node run`: a node that cheats."""

import sys
from functools import partial

from commonweight.devnet.byzantine import KINDS, Cheating, Who
from commonweight.errors import CommonweightError, ConfigError
from node.cli import app


def main(arguments: list[str]) -> None:
    """Run the node until training is complete. Exits with the error's code where it can't go on."""
    if not arguments or arguments[0] in ("-h", "--help"):
        ways = {kind: way for kind, way in KINDS.items() if way.who is not Who.AUDITOR}
        width = max(map(len, ways))
        lines = (f"  {kind:{width}}  {way.does} (FRACTION of {way.fraction})" for kind, way in ways.items())
        print(__doc__, *lines, sep="\n")  # noqa: T201 - help
        return
    try:
        cheating = Cheating.parse(arguments[0])
        if KINDS[cheating.kind].who is Who.AUDITOR:
            raise ConfigError(f"{cheating.kind!r} is for auditors: `python -m adversary.auditor {cheating}`.")
        from adversary.node import make_node

        app(["run", *arguments[1:]], prog_name="adversary", obj=partial(make_node, cheating))
    except CommonweightError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201 - as the root command does
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
