"""`tilting condition`: new controls from a small labelled data set (CTRL)."""

from __future__ import annotations

import typer

from tilting.cli.condition_fit import fit
from tilting.cli.condition_sample import sample
from tilting.cli.condition_train import train

condition = typer.Typer(
    help="New controls from a small labelled data set (CTRL).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@condition.callback()
def _steps() -> None:
    """New controls from a small labelled data set (CTRL)."""


for _name, _command in (("fit", fit), ("train", train), ("sample", sample)):
    condition.command(_name)(_command)
