"""The parts of reference pages that come from the code, so that no fact is written twice.

A page asks for a part with a line `<!-- generated: NAME ARGUMENT... -->`.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from upfield.cli.main import VERBS
from upfield.common.command import Command
from upfield.common.environment.influences import TABLE
from upfield.common.environment.treatments import Treatment
from upfield.common.grammar.key_help import KeyHelp, describe_keys, field_docs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "tables"

# A flag that is not yet marked as code.
FLAG = re.compile(r"(?<![`\w-])--[a-z][\w.]*")


def command_of(verb: str) -> Command:
    """Return the command of a verb."""
    return import_module(VERBS[verb][0]).COMMAND


def commands() -> str:
    """Return a table of all commands."""
    return _table(
        ("command", "what it does"), [(f"[`{v}`]({v}.md)", _sentence(what)) for v, (_, what) in VERBS.items()]
    )


def keys(verb: str, *left_out: str) -> str:
    """Return the keys of a verb: those that are required, then the others in their groups.

    Args:
        verb: the verb.
        left_out: beginnings of keys that another page has, such as `cohorts[].`.
    """
    command = command_of(verb)
    everything = [key for key in describe_keys(command.schema) if not key.key.startswith(left_out)]
    required = [key for key in everything if key.is_required and "[]" not in key.key]
    lines = ["## Required keys", "", *_definitions(required, command.positional)] if required else []
    others = [key for key in everything if key not in required]
    return "\n".join([*lines, *_groups(others, "Other keys" if required else "Keys", command.positional)])


def keys_below(verb: str, *beginnings: str) -> str:
    """Return the keys of a verb that begin in one of these ways, such as `synthetic.physics.`, in their order."""
    chosen = [key for key in describe_keys(command_of(verb).schema) if key.key.startswith(beginnings)]
    assert chosen, beginnings
    return "\n".join(_definitions(chosen))


def _groups(keys: Iterable[KeyHelp], first: str, positional: tuple[str, ...]) -> Iterator[str]:
    named: set[str] = set()
    for group, inner in groupby(keys, lambda key: (key.group, key.key.rpartition(".")[0])):
        title, prefix = group
        # The name of a part stays the same if its title changes.
        name = f" {{ #{prefix.replace('[]', '')} }}" if prefix and prefix not in named else ""
        named.add(prefix)
        yield f"## {title.replace('`', '') or first}{f' (`{prefix}`)' if prefix else ''}{name}"
        yield ""
        yield from _definitions(inner, positional)


def _definitions(keys: Iterable[KeyHelp], positional: tuple[str, ...] = ()) -> Iterator[str]:
    for key in keys:
        place = " · also without its flag" if key.key in positional else ""
        state = f"default `{key.default}`" if key.default is not None else key.state
        yield from _definition(key.key, f"{key.kind} · {state}{place}", html.escape(key.doc, quote=False))


def _definition(name: str, properties: str, text: str) -> Iterator[str]:
    """Yield the lines of one entry of a definition list, to which links can lead by its name."""
    yield f'<code id="{name.replace("[]", "")}">{name}</code> <span class="kind">{properties}</span>'
    yield f":   {text}"
    yield ""


def fields(module: str, name: str) -> str:
    """Return the fields of a dataclass with their docs, as a table."""
    docs = field_docs(getattr(import_module(f"upfield.{module}"), name))
    return _table(("key", "meaning"), [(f"`{key}`", doc) for key, doc in docs.items()])


def metrics() -> str:
    """Return the metrics of an evaluation with their definitions."""
    from upfield.evaluation.metrics import METRICS

    return "\n".join(
        line
        for metric in METRICS.values()
        for line in _definition(
            metric.name,
            f"one value per {metric.level}{f' · {metric.unit}' if metric.unit else ''} · "
            f"{'higher' if metric.higher_is_better else 'lower'} is better",
            _sentence(metric.definition),
        )
    )


def trust() -> str:
    """Return the measures of trust with their definitions."""
    from upfield.evaluation.summary import TRUST

    return "\n".join(line for name, words in TRUST.items() for line in _definition(name, "", _sentence(words)))


def environment() -> str:
    """Return the variables, files and processes that libraries read beside the configuration, by their treatment."""
    lines: list[str] = []
    for treatment in Treatment:
        lines += [f"## {_sentence(treatment.value).removesuffix('.')} {{ #{treatment.name.lower()} }}", ""]
        for entry in TABLE:
            if entry.treatment is treatment:
                names = " ".join(f"`{name}`" for name in entry.names.split()) if entry.is_variable else entry.names
                verbs = ", ".join(verb for verb in entry.verbs.split() if verb in VERBS) or "all commands"
                note = f" Note: {entry.instead}." if entry.instead else ""
                lines += [f'{names} <span class="kind">{verbs}</span>']
                text = f"Read by {entry.readers}. May change: {entry.changes}.{note}"
                lines += [":   " + FLAG.sub(r"`\g<0>`", text), ""]
    return "\n".join(lines)


def service() -> str:
    """Return the paths of the service with their parameters and responses, from its OpenAPI schema."""
    from upfield.export.service.api_page import RESPONSES

    lines: list[str] = []
    for path, methods in _schema_of_service()["paths"].items():
        for method, operation in methods.items():
            lines += [f"## `{method.upper()} {path}`", "", operation.get("description", ""), ""]
            parameters = [
                (f"`{each['name']}`", each["in"], each.get("description", ""))
                for each in operation.get("parameters", [])
            ]
            if parameters:
                lines += [_table(("parameter", "in", "meaning"), parameters), ""]
            if body := operation.get("requestBody"):
                kinds = " or ".join(f"`{kind}`" for kind in body["content"])
                lines += [f"**Request body** ({kinds}): {body['description']}", ""]
            # Responses of all paths are on the page once.
            responses = {
                status: each for status, each in sorted(operation["responses"].items()) if int(status) not in RESPONSES
            }
            lines += [_table(("status", "meaning", "type"), map(_response, responses, responses.values())), ""]
    return "\n".join(lines)


def service_errors() -> str:
    """Return the error statuses that every path of the service may send."""
    from upfield.export.service.api_page import RESPONSES

    return _table(("status", "meaning"), [(str(status), each["description"]) for status, each in RESPONSES.items()])


def _response(status: str, response: dict[str, Any]) -> tuple[str, ...]:
    meaning = "Success." if response["description"] == "Successful Response" else response["description"]
    return status, meaning, ", ".join(f"`{kind}`" for kind in response.get("content", {}))


def counters() -> str:
    """Return the counters that the service exposes to Prometheus."""
    from upfield.export.service.counters import Counters
    from upfield.export.service.scan_requests.admission import AdmissionQueue

    own = Counters(batch_size=4)
    own.watch(AdmissionQueue(1, 1))
    rows = [
        (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation)
        for family in own.registry.collect()
        if family.name.startswith("upfield")
    ]
    return _table(("name", "kind", "meaning"), rows)


def interface() -> str:
    """Return instructions for mkdocstrings to describe each public name of `upfield`.

    Functions come first, then classes, then errors. The keys of configurations are on other pages.
    """
    import upfield

    values = {name: getattr(upfield, name) for name in upfield.__all__ if not name.startswith("_")}

    def place(name: str) -> tuple[bool, bool, str]:
        value = values[name]
        return isinstance(value, type), isinstance(value, type) and issubclass(value, Exception), name

    lines: list[str] = []
    for name in sorted(values, key=place):
        lines += [f"::: upfield.{name}", "    options:", "      heading_level: 2"]
        lines += ["      members: false"] if name.endswith(("Config", "Error")) else []
        lines += [""]
    return "\n".join(lines)


def _schema_of_service() -> dict[str, Any]:
    from upfield.export.configuration import ServeConfig
    from upfield.export.service.counters import Counters
    from upfield.export.service.webapp import build_app

    engine: Any = None  # a schema needs no engine
    return build_app(ServeConfig(), engine, {"versions": {"upfield": "0"}}, Counters(4), None, Path()).openapi()


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    return "\n".join([line(heads), line("---" for _ in heads), *map(line, rows)])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text[0].isalpha() and not text.startswith("psnr") else f"{text}."


def benchmark(name: str) -> str:
    """Return a table that a benchmark printed, as it is in `benchmarks/tables/`."""
    return f"```text\n{(BENCHMARKS / f'{name}.txt').read_text(encoding='utf-8').rstrip()}\n```"


def relaxation(field: str) -> str:
    """Return the relaxation times of the tissues at 64 mT (`low`) or at 3 T (`high`), with their sources."""
    from upfield.sharding.physics.relaxation import HIGH, LOW

    rows = [
        (
            tissue.replace("_", " "),
            *(f"{value:g}" for value in (row.mean.density, row.mean.t1_ms, row.mean.t2_ms)),
            f"{row.spread:.0%}",
            row.source,
        )
        for tissue, row in {"low": LOW, "high": HIGH}[field].items()
        if row.mean.density
    ]
    return _table(("tissue", "density", "T1 (ms)", "T2 (ms)", "spread", "source"), rows)


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part
    for part in (
        commands,
        keys,
        keys_below,
        fields,
        metrics,
        trust,
        environment,
        service,
        service_errors,
        counters,
        interface,
        benchmark,
        relaxation,
    )
}
"""Name of each part, and the function that returns it as Markdown."""
