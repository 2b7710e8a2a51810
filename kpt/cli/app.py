"""The commands of ``kpt-tune``, one module each, and the help that stands above them."""

import typer

from kpt.cli import doctor, explain, remove, run, stored, targets, transfer, warm

app = typer.Typer(
    name="kpt-tune",
    help="""Find the fastest config of kpt's kernels for a device, and keep it in the config database that dispatch reads.

    Tune an op on the GPU that is here, or for one that is not:

        kpt-tune run --op flash_attention --shapes "B=4,H=32,G=8,M=4096,N=4096,D=128" --dtype bf16 --flags causal=true

        kpt-tune run --op layer_norm --shapes "M=8192,N=4096" --target nvidia-h200

    Tune every op of a model, or a kernel of your own:

        kpt-tune run --preset llama-8b --budget 60s

        kpt-tune run --kernel package.module:softmax --shapes "M=4096,N=1024"

    Compile what a program calls before it calls it, or tune that (`kpt.ops.recording` notes it):

        kpt-tune warm --calls calls.json

        kpt-tune run --calls calls.json

        kpt-tune run --model meta-llama/Llama-3.2-1B --batch 4 --length 2048

    See what is known, and take it elsewhere:

        kpt-tune list

        kpt-tune explain --op rms_norm --shapes "M=4096,N=4096"

        kpt-tune export -o h200.json

        kpt-tune remove 3f2a91c0

    Exit codes: 0 done, 1 something did not work out, 2 bad input, 130 ended by Ctrl-C with what was found stored
    (143 by SIGTERM, 129 by SIGHUP).
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

app.command("run")(run.run)
app.command("warm")(warm.warm)
app.command("targets")(targets.targets)
app.command("list")(stored.list_entries)
app.command("show")(stored.show)
app.command("explain")(explain.explain)
app.command("export")(transfer.export)
app.command("import")(transfer.import_)
app.command("remove")(remove.remove)
app.command("doctor")(doctor.doctor)
