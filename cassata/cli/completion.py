"""`cassata completion`: what a shell needs to complete our commands."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    \b
    bash:  eval "$(cassata completion bash)"     in ~/.bashrc
    zsh:   eval "$(cassata completion zsh)"      in ~/.zshrc
    fish:  cassata completion fish > ~/.config/fish/completions/cassata.fish
    """
    from click.shell_completion import get_completion_class

    from cassata.cli import cassata

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cassata, {}, "cassata", "_CASSATA_COMPLETE").source())
