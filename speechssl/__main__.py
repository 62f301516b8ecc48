"""``speechssl``: the commands for data, training and evaluation. Each imports what it needs when it runs."""

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pretrain speech encoders on unlabelled audio, fine-tune them with CTC, evaluate them.",
)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
