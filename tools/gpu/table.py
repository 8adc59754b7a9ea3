"""The kit's results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Record = dict[str, Any]
Rows = list[list[str]]


def table(record: Record) -> str:
    """Every part that wrote something, each under its title, and a line for what did not end well."""
    found = {name: [x for x in part["lines"] if "failed" not in x] for name, part in record.items()}
    readers = [line for name, lines in found.items() if name.startswith("readers") for line in lines]
    parts: list[tuple[str, Callable[[list[Record]], Rows], list[Record]]] = [
        ("Kernels against their twins", kernels, found.get("kernels", [])),
        ("Rates", rates, found.get("rates", [])),
        ("LLaMA-2-7B, seconds", layers, found.get("layers", [])),
        ("Peaks beyond weight and Hessian, in weights", memory, found.get("memory", [])),
        ("Models through GPTQModel", models, found.get("models", [])),
        ("A model through llm-compressor", compressor, found.get("compressor", [])),
        ("Predictions against the dequantization, KL in nats a token", read, readers),
    ]
    written = [f"**{title}**\n\n{markdown(make(lines))}" for title, make, lines in parts if lines]
    return "\n".join([*written, *troubles(record)]) + "\n"


def markdown(rows: Rows) -> str:
    """A table whose first row is its heading."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def troubles(record: Record) -> Iterable[str]:
    """What was skipped, failed, or came out wrong."""
    for name, part in record.items():
        if part["skipped"]:
            yield f"- {name} skipped: {part['skipped']}"
        for line in part["lines"]:
            if "failed" in line or line.get("right") is False:
                yield f"- {name}: {line}"


def kernels(lines: list[Record]) -> Rows:
    """A row a kernel."""
    rows = [["kernel", "cases", "right", "largest error, or share of other moves", "twin's"]]
    for name in dict.fromkeys(line["kernel"] for line in lines):
        some = [line for line in lines if line["kernel"] == name]
        error = max(float(line["error"] if "error" in line else line["differ"]) for line in some)
        twin = max((line["twin_error"] for line in some if "twin_error" in line), default=None)
        right = sum(line["right"] for line in some)
        rows.append([name, str(len(some)), str(right), f"{error:.1e}", "" if twin is None else f"{twin:.1e}"])
    return rows


def rates(lines: list[Record]) -> Rows:
    """The machine, TFLOP/s, GB/s, and the update over the time of its bytes."""
    rows = [["what", "value"]]
    for line in lines:
        if "machine" in line:
            machine = line["machine"]
            rows.append(["machine", f"{machine['gpu'] or machine['processor']}, torch {machine['torch']}"])
        elif line.get("rate") == "products":
            mode = "TF32" if line["tf32"] else "IEEE"
            rows.append([f"products, {mode}", f"{line['flops'] / 1e12:,.2f} TFLOP/s"])
        elif line.get("rate") == "memory":
            rows.append(["memory", f"{line['bytes_a_second'] / 1e9:,.0f} GB/s"])
        else:
            size = f"update {line['update']}, groups of {line['group_size']}"
            rows.append([size, f"{line['of_its_bytes']:.2f} times its bytes"])
    return rows


def layers(lines: list[Record]) -> Rows:
    """All layers of the model, by mode; a part of which a shape is missing has no sum."""
    rows = [["", "IEEE", "TF32"]]
    parts: dict[str, Callable[[Record], float]] = {
        "factorizations, one an input": lambda x: x["inputs"] * x["factorization"],
        "`reduce`, one strength, each layer alone": lambda x: x["layers"] * x["reduce"],
        "the default's own work, shared factorizations": lambda x: (
            x["inputs"] * x["factorization"] + x["layers"] * (x["prepare"] + x["settle"])
        ),
        "30 sweeps": lambda x: x["layers"] * x["sweeps"],
        "the paper's 150 steps": lambda x: x["layers"] * x["paper"],
    }
    needed, *measured = lines
    found: dict[tuple[str, bool], Record] = {}
    for line in measured:  # of one shape the paper's time has a line of its own
        key = line["shape"], line["tf32"]
        found[key] = found.get(key, {}) | line
    for name, seconds in parts.items():
        cells = []
        for on in (False, True):
            try:
                cells.append(f"{sum(seconds(found[shape, on]) for shape in needed['shapes']):,.2f}")
            except KeyError:
                cells.append("not measured")
        rows.append([name, *cells])
    return rows


def memory(lines: list[Record]) -> Rows:
    """A row a shape and group size."""
    rows = [["layer", "groups", "reduce", "its formula", "all of the default"]]
    for x in lines:
        peaks = [f"{x[name]:.1f}" for name in ("reduce", "predicted", "default")]
        rows.append([x["shape"], str(x["group_size"]), *peaks])
    return rows


def models(lines: list[Record]) -> Rows:
    """A row a run."""
    rows = [["model", "bits", "", "seconds", "peak, MB", "negative scales"]]
    for x in lines:
        name, share = "MagR" if x["magr"] else "GPTQ", f"{100 * x['negative_scales']:.0f} %"
        rows.append(
            [x["model"], str(x["bits"]), name, f"{x['seconds']:.1f}", f"{x['peak_bytes'] / 1e6:,.0f}", share]
        )
    return rows


def compressor(lines: list[Record]) -> Rows:
    """A row a run."""
    rows = [["model", "bits", "", "seconds", "KL from the original"]]
    for x in lines:
        name = "MagR" if x["magr"] else "GPTQ"
        rows.append([x["model"], str(x["bits"]), name, f"{x['seconds']:.1f}", f"{x['kl']:.4f}"])
    return rows


def read(lines: list[Record]) -> Rows:
    """A row a checkpoint and kernel."""
    rows = [["checkpoint", "kernel", "KL", "were signs lost", "right"]]
    for x in lines:
        kernel = ", ".join(x["layers"])
        cells = [f"{x['kl']:.1e}", f"{x['kl_unsigned']:.1e}", "yes" if x["right"] else "no"]
        rows.append([x["checkpoint"], kernel, *cells])
    return rows
