"""`autoglm bench`: measure a mesh, and write down what was found."""

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.progress import Progress

from autoglm.bench.smoke import load, report, workloads
from autoglm.bench.smoke.report import LoadCase, LoadResult
from autoglm.bench.smoke.workloads import Messages, ToolsMissing
from autoglm.cli.api import Api, ApiError
from autoglm.cli.options import BUNDLE_OPTION, ApiKey, AsJson, BundleFolder, missing_package, needing
from autoglm.cli.progress import telling, telling_in
from autoglm.common.bundle import Bundle, BundleError, chosen_bundle
from autoglm.common.errors import MeshError
from autoglm.common.progress import shown_progress
from autoglm.training.measured import conditions

SEED = 0
ROUNDS = 5
CACHE_ROUNDS = 15  # which are short
CONCURRENCIES = (1, 16)
WARM_UP = 2  # requests of each case before the first round
KINDS = (("text", "none"), ("screen", "new"), ("screen", "repeated"), ("voice", "new"), ("voice", "repeated"))
CASES = tuple(LoadCase(*kind, concurrency) for kind in KINDS for concurrency in CONCURRENCIES)

Work = Mapping[LoadCase, Sequence[Sequence[Messages]]]  # the requests of each case, a list a round, the warm-up first

if TYPE_CHECKING:
    from autoglm.bench.stages.bench import MeasuredStages
    from autoglm.bench.stages.mesh import Answers
    from autoglm.cli.local_mesh import LocalMesh
    from autoglm.cli.progress import Tell

app = typer.Typer(help="Measure a mesh.", no_args_is_help=True)


class Unmeasurable(Exception):
    """The benchmark cannot run; the message says in one line what to do."""


@app.callback()
def bench() -> None:
    """Measure a mesh."""


@app.command()
def smoke(
    url: Annotated[
        str | None, typer.Option(help="A running mesh.", show_default="one that is started and stopped here")
    ] = None,
    api_key: ApiKey = "EMPTY",
    requests: Annotated[int, typer.Option(min=1, help="Requests a row and round.")] = 16,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure time to first token, time between tokens and tokens/s of text, screens and voice, for 1 and 16 users."""
    with _ending_on(ApiError, ToolsMissing, Unmeasurable):
        found, rows = _smoke(url, api_key, requests)
    _hand_over(out, "smoke", found, report.as_json(found, rows), report.as_markdown(found, rows), as_json)


@app.command()
def engine(
    quick: Annotated[bool, typer.Option(help="Only the small model, few rounds, nothing compiled.")] = False,
    dtype: Annotated[str, typer.Option(help="Type of weights and arithmetic: float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads.", show_default="half of the cores")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, after one that warms up.")] = ROUNDS,
    bundle: BundleFolder = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Compare the decoder's engine with transformers: equality, tokens/s, an agent's second step, a full cache."""
    with needing("decoder", "bench"):
        import torch

        from autoglm.bench.engine import bench
        from autoglm.bench.engine import report as engine_report
        from autoglm.bench.engine.model_under_test import EngineBenchConfig
        from autoglm.cli.processes import StartError
    if dtype not in bench.DTYPES:
        raise typer.BadParameter(f"{dtype} is neither {' nor '.join(bench.DTYPES)}", param_hint="--dtype")
    config = EngineBenchConfig.of(quick, "cuda" if torch.cuda.is_available() else "cpu", dtype, threads, rounds)
    with _ending_on(BundleError, ApiError, ToolsMissing, StartError), telling() as tell:
        measured = bench.run(config, Bundle.open(bundle or chosen_bundle(), BUNDLE_OPTION), tell)
    found = conditions() | {"benchmark": "autoglm bench engine"} | config.as_json()
    name = f"engine-{config.device}-{dtype}" + ("-quick" if quick else "")
    _hand_over(
        out, name, found, engine_report.as_json(found, measured), engine_report.as_markdown(found, measured), as_json
    )


@app.command()
def gateway(
    quick: Annotated[bool, typer.Option(help="Less of everything: under a minute.")] = False,
    litellm: Annotated[
        Path | None,
        typer.Option(help="LiteLLM's program, as tools/litellm.sh installs it.", show_default="no such peer"),
    ] = None,
    vllm: Annotated[
        Path | None,
        typer.Option(help="A Python with vLLM, as tools/test_vllm.sh installs it.", show_default="no such peer"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure the gateway in front of a stub decoder: added latency, chunks/s, memory per stream."""
    with needing("serve", "bench"):
        from autoglm.bench.gateway import bench
        from autoglm.bench.gateway import report as gateway_report
        from autoglm.bench.gateway.generator import Incomplete
        from autoglm.bench.gateway.targets import LITELLM, VLLM, version_of
        from autoglm.cli.processes import StartError
    config = bench.GatewayBenchConfig.of(quick)
    peers = {name: program for name, program in ((LITELLM, litellm), (VLLM, vllm)) if program is not None}
    with _ending_on(Incomplete, StartError):
        versions = [version_of(name, program) for name, program in peers.items()]
        with telling() as tell:
            measured = bench.run(config, peers, tell)
    found = conditions() | {"benchmark": "autoglm bench gateway", "peers": versions, "seed": SEED} | config.as_json()
    name = "gateway-quick" if quick else "gateway"
    _hand_over(
        out, name, found, gateway_report.as_json(found, measured), gateway_report.as_markdown(found, measured), as_json
    )


@app.command()
def tracing(
    quick: Annotated[bool, typer.Option(help="Fewer rounds and requests: under a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure what traces cost the gateway: CPU time per answer with and without them."""
    with needing("serve", "bench"):
        from autoglm.bench.gateway.generator import Incomplete
        from autoglm.bench.tracing import bench
        from autoglm.bench.tracing import report as tracing_report
        from autoglm.cli.processes import StartError
    config = bench.TracingBenchConfig.of(quick)
    with _ending_on(Incomplete, StartError), telling() as tell:
        measured = bench.run(config, tell)
    found = conditions() | {"benchmark": "autoglm bench tracing"} | config.as_json()
    tables = tracing_report.as_json(found, measured), tracing_report.as_markdown(found, measured)
    _hand_over(out, "tracing-quick" if quick else "tracing", found, *tables, as_json)


@app.command()
def cache(
    quick: Annotated[bool, typer.Option(help="Fewer rounds, pictures and requests: under a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure the embedding cache: fetching compared with encoding, hit ratio and memory with many gateways."""
    with needing("serve", "bench"):
        from autoglm.bench.cache import bench
        from autoglm.bench.cache import report as cache_report
        from autoglm.bench.cache.trace import ZipfConfig
        from autoglm.cli.processes import StartError
    config, rounds = ZipfConfig.of(quick), 2 if quick else CACHE_ROUNDS
    with _ending_on(BundleError, StartError), telling() as tell:
        measured = bench.run(config, rounds, tell)
    found = conditions() | {"benchmark": "autoglm bench cache", "rounds": rounds} | asdict(config)
    name = "cache-quick" if quick else "cache"
    _hand_over(
        out, name, found, cache_report.as_json(found, measured), cache_report.as_markdown(found, measured), as_json
    )


@app.command()
def stages(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure what each stage costs on this machine's CPU; `autoglm plan` reads the JSON file."""
    with needing("serve", "bench"):
        from autoglm.bench.stages import report as stages_report
    with _stages() as (_, _, measured, _):
        found = conditions() | {"benchmark": "autoglm bench stages", "model": measured.model}
    tables = stages_report.as_json(found, measured), stages_report.as_markdown(found, measured)
    _hand_over(out, "stages", found, *tables, as_json)


@app.command()
def scaling(
    quick: Annotated[bool, typer.Option(help="Fewer rounds and requests: under a minute.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a replica.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Measure how latency grows with the requests in progress in a replica: what `target_ongoing_requests` follows."""
    with needing("serve", "bench"):
        from autoglm.bench.scaling import bench
        from autoglm.bench.scaling import report as scaling_report
    config = bench.ScalingConfig.of(quick, threads)
    with _ending_on(BundleError, MeshError, ToolsMissing), telling() as tell:
        measured = bench.run(config, tell)
    found = conditions() | {"benchmark": "autoglm bench scaling"} | asdict(config)
    tables = scaling_report.as_json(found, measured), scaling_report.as_markdown(found, measured)
    _hand_over(out, "scaling-quick" if quick else "scaling", found, *tables, as_json)


@app.command()
def plan(
    seconds: Annotated[int, typer.Option(min=5, help="Seconds at each rate.")] = 30,
    costs: Annotated[
        Path | None,
        typer.Option(
            help="What encoders and decoder cost: a JSON file of `autoglm bench stages`.", show_default="measured first"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    as_json: AsJson = False,
) -> None:
    """Compare the simulation of `autoglm plan` with a mesh: latency at several rates, simulated and measured."""
    with needing("plan", "bench"):
        from autoglm.bench.plan import validation
        from autoglm.bench.plan import validation_report as plan_report
        from autoglm.bench.plan.replications import replications
    with _stages(costs) as (api, tell, measured, alone):
        runs = list(validation.measure_rates(api, measured.model, validation.RATES, seconds, tell))
    with _ending_on(), telling() as tell, replications() as simulator:
        rows = [validation.compared(run, alone, measured.costs, simulator, tell) for run in runs]
    found = conditions() | {"benchmark": "autoglm bench plan", "model": measured.model, "seconds": seconds}
    tables = plan_report.as_json(found, measured, rows), plan_report.as_markdown(found, rows)
    _hand_over(out, "plan", found, *tables, as_json)


@contextmanager
def _stages(costs: Path | None = None) -> "Iterator[tuple[Api, Tell, MeasuredStages, Answers]]":
    """Measure the stages, or read `costs`, and give them inside the block with a mesh that runs, and single answers of
    it."""
    with needing("serve", "bench"):
        from autoglm.bench.plan.schema import PlanError
        from autoglm.bench.stages.bench import measure_stages, read_stages
        from autoglm.bench.stages.mesh import ask_alone, measure_gateway, with_mesh
    with _ending_on(ApiError, BundleError, PlanError, ToolsMissing, Unmeasurable), shown_progress() as progress:
        tell = telling_in(progress)
        bundle = Bundle.open(chosen_bundle(), BUNDLE_OPTION)
        measured = measure_stages(bundle, tell) if costs is None else read_stages(bundle, costs)
        with _own_mesh(progress) as mesh:
            api = Api(mesh.http_url)
            model, parts = _model(api), psutil.Process(mesh.process.pid).children(recursive=True)
            gateway = next(part for part in parts if "autoglm.gateway.app" in part.cmdline())
            work = measure_gateway(api, model, lambda: sum(gateway.cpu_times()[:2]), tell)
            alone = ask_alone(api, model, tell)
            yield api, tell, with_mesh(measured, alone, work), alone


@contextmanager
def _ending_on(*errors: type[Exception]) -> Iterator[None]:
    """End with one line and exit status 1 on these errors in the block, and with 130 on Ctrl-C."""
    try:
        yield
    except errors as error:
        print(f"autoglm bench: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("autoglm bench: stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from None


def _hand_over(out: Path, name: str, found: Mapping[str, Any], as_json: str, as_table: str, print_json: bool) -> None:
    """Write both forms and print one."""
    path = report.write(out, name, found, as_json, as_table)
    print(as_json if print_json else as_table, end="")
    Console(stderr=True).print(f"Written to {path} and {path.with_suffix('.json')}")


def _smoke(url: str | None, api_key: str, requests: int) -> tuple[dict[str, Any], list[LoadResult]]:
    with shown_progress() as progress, _mesh(url, progress) as address:
        api = Api(address, api_key)
        model = _model(api)
        rows = _measure(api, model, _draw(requests, progress), progress)
    found = {
        "benchmark": "autoglm bench smoke",
        "model": model,
        "server": url or "a mesh of its own",
        "seed": SEED,
        "rounds": ROUNDS,
        "requests": requests,
    }
    return conditions() | found, rows


def _draw(requests: int, progress: Progress) -> Work:
    sizes = [min(WARM_UP, requests), *[requests] * ROUNDS]
    each = sum(sizes) * len(CONCURRENCIES)
    task = progress.add_task("Drawing", total=sum(each if media != "repeated" else 1 for _, media in KINDS))
    rounds: dict[LoadCase, list[Sequence[Messages]]] = {}
    for index, (name, media) in enumerate(KINDS):
        made = workloads.draw(name, 1 if media == "repeated" else each, SEED + index, lambda: progress.advance(task))
        supply = iter(made * each if media == "repeated" else made)
        for concurrency in CONCURRENCIES:
            rounds[LoadCase(name, media, concurrency)] = [[next(supply) for _ in range(size)] for size in sizes]
    return rounds


def _measure(api: Api, model: str, work: Work, progress: Progress) -> list[LoadResult]:
    task = progress.add_task("Measuring", total=sum(len(batch) for rounds in work.values() for batch in rounds))
    runs: dict[LoadCase, list[load.LoadRun]] = {case: [] for case in CASES}
    shuffle = random.Random(SEED).shuffle
    for number in range(1 + ROUNDS):
        order = list(CASES)
        shuffle(order)
        for case in order:
            batch = work[case][number]
            runs[case].append(load.run(api, model, batch, case.concurrency, lambda: progress.advance(task)))
    return [LoadResult.of(case, runs[case][1:]) for case in CASES]


def _model(api: Api) -> str:
    card = api.get("/v1/models")["data"][0]
    missing = {"image", "audio"} - set(card["modalities"])
    if missing:
        raise Unmeasurable(f"the server takes no {' and no '.join(sorted(missing))} input: serve it with all parts")
    return str(card["id"])


@contextmanager
def _mesh(url: str | None, progress: Progress) -> Iterator[str]:
    """Give the address of the mesh to measure: the one named, or one that lives inside the block."""
    if url is not None:
        yield url
        return
    with _own_mesh(progress) as mesh:
        yield mesh.http_url


@contextmanager
def _own_mesh(progress: Progress) -> "Iterator[LocalMesh]":
    """Give a mesh that lives inside the block."""
    try:
        from autoglm.cli.local_mesh import running_mesh
        from autoglm.cli.processes import StartError
    except ModuleNotFoundError as error:
        raise Unmeasurable(
            f"{missing_package(error)} is missing: pip install 'autoglm-mesh[serve]', or name a --url"
        ) from None
    task = progress.add_task("Starting a mesh", total=None)
    try:
        with running_mesh() as mesh:
            progress.update(task, total=1, completed=1)
            yield mesh
    except StartError as error:
        raise Unmeasurable(str(error)) from None
