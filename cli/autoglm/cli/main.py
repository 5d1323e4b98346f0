"""The `autoglm` command. One module per command; each imports what is heavy when it runs, not before."""

import typer

from autoglm.cli import bench, bundle, chat, doctor, evaluate, keys, serve, train

app = typer.Typer(
    help="The AutoGLM-Phone mesh.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
app.command()(serve.serve)
app.command()(chat.chat)
app.command()(doctor.doctor)
app.command("eval")(evaluate.evaluate)
app.add_typer(bench.app, name="bench")
app.add_typer(bundle.app, name="bundle")
app.add_typer(keys.app, name="keys")
app.add_typer(train.app, name="train")

if __name__ == "__main__":
    app()
