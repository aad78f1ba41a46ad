"""docs/results.md is true: figures are those of the CSV files, commands of its scripts compose."""

import csv
import importlib.util
import os
import re
import shutil
import subprocess
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "results.md").read_text()
FOLDER = ROOT / "docs" / "results"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
DIRECTIVE = re.compile(
    r"<!-- (?P<file>\w+\.csv): (?P<rows>[\w, ]+) by (?P<columns>[\w, ]+)(?P<filters>(?:; .+ = .+)*) -->"
)
TABLE = re.compile(r"(?:^<!-- .* -->\n)?^\|.*\n\|[-| ]+\n(?:\|.*\n)*", re.M)
VERDICTS = {"holds", "holds in part", "does not hold here", "not tested here"}
INTERVAL, SPREAD = {"estimate", "low", "high"}, {"mean", "deviation"}  # in place of seeds
STUB = """#!/bin/bash
if [ "$1" = - ]; then cat >/dev/null; echo "${@: -1}"; exit; fi  # a choice: the last of its arguments
printf '%s\\x1f' "$@" >>"$COMMANDS"; echo >>"$COMMANDS"
for word in "$@"; do
  case $word in hydra.run.dir=*) mkdir -p "${word#*=}/student"; touch "${word#*=}/summary.json" ;; esac
done
"""


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """(comment before it, header, rows) of each table."""
    for found in TABLE.finditer(text):
        lines = found[0].splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("|"))
        yield lines[0] if first else "", cells(lines[first]), [cells(line) for line in lines[first + 2 :]]


def shown_as(value, like):
    """A figure with the decimals of another, and with its plus."""
    decimals = len(like.partition(".")[2])
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{rounded:+,}" if like.startswith("+") else f"{rounded:,}"


def expected(values, like):
    """The text of a cell: one figure, mean ± sample standard deviation of the seeds, or a figure and its interval."""
    if set(values) == INTERVAL:
        figure, low, high = (shown_as(values[part], like) for part in ("estimate", "low", "high"))
        return f"{figure} ({low} to {high})"
    if set(values) == SPREAD:
        return f"{shown_as(values['mean'], like)} ± {shown_as(values['deviation'], like)}"
    figure = shown_as(mean(values.values()), like)
    return figure if len(values) == 1 else f"{figure} ± {shown_as(stdev(values.values()), like)}"


def grouped(records, rows, columns):
    """The values by seed of each cell: {(row, column): {seed: value}}."""
    groups = {}
    for record in records:
        key = tuple(record[name] for name in rows), ", ".join(record[name] for name in columns)
        group = groups.setdefault(key, {})
        assert record["seed"] not in group, f"two values in one cell, filter them: {record}"
        group[record["seed"]] = Decimal(record["value"])
    return groups


def differences(text, folder):
    """What tables show that their CSV files do not say, and what they leave out."""
    found = []
    for comment, header, body in tables(text):
        if header[0] == "claim of the source":
            continue
        directive = DIRECTIVE.fullmatch(comment)
        if directive is None:
            found.append(f"no CSV file is named before the table of {header}")
            continue
        rows, columns = directive["rows"].split(", "), directive["columns"].split(", ")
        filters = [part.split(" = ", 1) for part in directive["filters"].split("; ")[1:]]
        with (folder / directive["file"]).open() as file:
            records = [
                record
                for record in csv.DictReader(file)
                if all(record[name] in values.split(" | ") for name, values in filters)
            ]
        groups = grouped(records, rows, columns)
        for line in body:
            row = tuple(line[: len(rows)])
            for column, cell in zip(header[len(rows) :], line[len(rows) :], strict=True):
                values = groups.pop((row, column), None)
                if values is None:
                    found += [f"{directive['file']} has no figure for {row}, {column}"] if cell else []
                    continue
                figure, share = re.fullmatch(r"(.*?)( \([\d.]+ %\))?", cell).groups()
                wanted = expected(values, figure.split()[0] if figure else "0.0")
                if share:
                    teacher = dict(zip(rows, row, strict=True)) | {"arm": "teacher"}
                    whole = grouped(records, rows, columns)[tuple(teacher[name] for name in rows), column]
                    wanted += f" ({shown_as(100 * mean(values.values()) / mean(whole.values()), '0.0')} %)"
                if cell != wanted:
                    found.append(f"{directive['file']}, {row}, {column}: {cell!r} is {wanted!r}")
        found += [f"{directive['file']}: {row}, {column} is not shown" for row, column in groups]
    return found


def test_figures_are_those_of_the_csv_files():
    assert not differences(TEXT, FOLDER)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text, _: text.replace("| 102.6 ± 10.1 |", "| 102.5 ± 10.1 |", 1), "'102.5 ± 10.1' is '102.6 ± 10.1'"),
        (lambda text, _: re.sub(r"<!-- wikipedia\.csv.*-->\n", "", text, count=1), "no CSV file is named"),
        (lambda text, _: re.sub(r"^\| teacher \|.*\n", "", text, count=1, flags=re.M), "is not shown"),
        (lambda text, _: text.replace("(98.3 %)", "(98.4 %)", 1), "(98.4 %)' is"),
        (lambda _, rows: rows.replace(",1,perplexity,112.4", ",1,perplexity,122.4", 1), "'102.6 ± 10.1' is"),
        (lambda _, rows: re.sub(r"^.*DIITO, 700 steps.*\n", "", rows, flags=re.M), "has no figure"),
    ],
    ids=["figure", "no file", "row left out", "share", "value", "values left out"],
)
def test_other_figures_are_found(tmp_path, change, reason):
    for path in FOLDER.glob("*.csv"):
        shutil.copy(path, tmp_path)
    rows = tmp_path / "wikipedia.csv"
    text, changed = TEXT, change(TEXT, rows.read_text())
    if changed.startswith("setting,"):
        rows.write_text(changed)
    else:
        text = changed
    assert any(reason in one for one in differences(text, tmp_path))


def test_claims_have_a_verdict_and_show_figures_of_the_tables():
    claims, *others = tables(TEXT)
    _, header, rows = claims
    assert header == ["claim of the source", "source's figure", "ours, at our scale", "command", "verdict"]
    assert {row[-1] for row in rows} <= VERDICTS
    measured = "\n".join(cell for _, _, body in others for row in body for cell in row)
    spreads = {figure for row in rows for figure in re.findall(r"[\d.,]+ ± [\d.]+", row[2])}
    assert spreads
    assert not {figure for figure in spreads if figure not in measured}


def test_every_script_and_csv_file_is_linked():
    linked = set(re.findall(r"\]\(results/([\w.]+)\)", TEXT))
    assert {path.name for path in (*SCRIPTS, *FOLDER.glob("*.csv"))} <= linked
    assert len(TEXT.splitlines()) <= 250


def test_the_picture_of_the_seeds_is_current():
    path = ROOT / "docs" / "pictures" / "plots.py"
    spec = importlib.util.spec_from_file_location("plots", path)
    plots = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plots)
    assert plots.drawn() in path.with_name("seeds.svg").read_text(), "stale; run python docs/pictures/plots.py"


def test_the_table_of_the_readme_is_that_of_the_quickstart():
    with (FOLDER / "quickstart.csv").open() as file:
        own = [row for row in csv.DictReader(file) if (row["setting"], row["seed"]) == ("quickstart", "42")]
    figures = {(row["arm"], row["metric"]): row["value"] for row in own}
    _, header, rows = next(one for one in tables((ROOT / "README.md").read_text()) if one[1][0] == "model")
    assert len(rows) == 5
    for label, parameters, latency, perplexity, _ in rows:
        arm = label.partition(":")[0]
        shown = dict(zip(header[1:4], (parameters.replace(",", ""), latency, perplexity), strict=True))
        assert shown == {metric: figures[arm, metric] for metric in header[1:4]}


def commands_of(script, folder):
    """The commands that a script runs, in lists of words; none of them is run."""
    stub, log, data = folder / "python", folder / "commands", folder / "data"
    stub.write_text(STUB)
    stub.chmod(0o755)
    log.write_text("")
    (data / "glue" / "STS-B").mkdir(parents=True, exist_ok=True)
    (data / "glue" / "STS-B" / "train.tsv").touch()
    env = {**os.environ, "PYTHON": str(stub), "COMMANDS": str(log), "FOLDER": str(folder / "runs"), "JOBS": "1"}
    env |= {"POTSTILL_DATA_DIR": str(data), "MODEL": "somewhere", "TEACHER": "somewhere"}
    subprocess.run(["bash", script], cwd=ROOT, env=env, check=True, timeout=120)
    return [line.split("\x1f")[:-1] for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_commands_of_the_scripts_compose(script, tmp_path, compose_config):
    """Each override once: of the commands of a script, those with an override that none before them has."""
    own, composed = {"train.py", "evaluate.py"}, set()
    for name, *words in commands_of(script, tmp_path):
        assert (ROOT / name).is_file(), name
        if name not in own:
            files = [ROOT / name, (ROOT / name).with_name("sides.py")]
            source = "".join(path.read_text() for path in files if path.exists())
            assert all(f'"{word}"' in source for word in words if word.startswith("--")), (name, words)
            continue
        overrides = [word for word in words if not word.startswith("hydra.")]
        kinds = {(name, re.sub(rf"{tmp_path}/runs/[^\],]*|seed=\d", "", word)) for word in overrides}
        if not kinds <= composed:
            compose_config(*overrides, name=name.removesuffix(".py"))
            composed |= kinds


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_run_that_has_ended_is_not_repeated(script, tmp_path):
    trained = [words for words in commands_of(script, tmp_path) if words[0] == "train.py"]
    assert trained or script.stem == "speed"
    folders = [word for words in trained for word in words if word.startswith("hydra.run.dir=")]
    assert len(folders) == len(trained) == len(set(folders))
    assert not [words for words in commands_of(script, tmp_path) if words[0] == "train.py"]
