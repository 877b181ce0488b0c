"""The program ``lstmjax``, also ``python -m lstmjax``: the instrument on anybody's cells and data.

* ``lstmjax gradients``: how the gradient decays with the lag; without options, the main job
* ``lstmjax compare``: two or more cells next to one another, before and after training, and whether they differ
* ``lstmjax explain``: one unit run with numbers

``lstmjax COMMAND --help`` tells the options. Only a plain install is wanted, and matplotlib for pictures.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; what the user can mend is one line on standard error, and the exit status 2.

    Args:
        arguments: the command and its options; those of the command line unless given.
    """
    import tyro

    from lstmjax.program import common, compare, explain, gradients

    description = "An instrument for watching gradients survive, or not survive, a long lag; and one unit explained."
    commands = {"gradients": gradients.Settings, "compare": compare.Settings, "explain": explain.Settings}
    settings = tyro.extras.subcommand_cli_from_dict(
        commands, prog="lstmjax", description=description, args=None if arguments is None else list(arguments)
    )
    try:
        with common.select_device(getattr(settings, "device", None)):
            settings.run()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"lstmjax: {error}", file=sys.stderr)
        sys.exit(2)
