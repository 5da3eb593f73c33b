"""Tables of the cross-validated experiments, from results/runs.csv: AMuSE against the others, fold by fold."""

import csv
import statistics
from collections.abc import Iterable

from amuse.experiments.cross_validation import CrossValidation
from amuse.experiments.paired import Difference, paired_difference
from benchmarks.evidence import RUNS, read_runs
from benchmarks.experiments import AMUSE, CONCAT, LINEAR, RIVALS, SETS


def table(data: str) -> str:
    """The protocol, every contender's score, AMuSE's difference to it if it was run, and what that shows."""
    runs = {name: scores for (of, name), scores in read_runs().items() if of == data}
    if not runs:
        return "Not measured."
    ours, first = runs.get(AMUSE), next(iter(runs.values()))
    lines = [
        f"| | {first.measure} | {first.second} | AMuSE's difference | 95 % interval | AMuSE is |",
        "|---" * 6 + "|",
    ]
    for name, scores in runs.items():
        cells = [name, spread(scores, 0), spread(scores, 1)]
        cells += ["", "", ""] if name == AMUSE or ours is None else difference_cells(ours, scores)
        lines.append(f"| {' | '.join(cells)} |")
    return f"{SETS[data].protocol}.\n\n" + "\n".join(lines)


def grid(file: str) -> str:
    """A CSV that `amuse ablate --folds` wrote, copied into results: every row against the unchanged configuration."""
    if not (RUNS.parent / file).is_file():
        return "Not measured."
    with (RUNS.parent / file).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    lines = []
    for row in rows:
        digits = 3 if row["measure"] == "Pearson r" else 2
        mean = f"{float(row['mean']):.{digits}f}"
        mean += f" ± {float(row['deviation']):.{digits}f}" if row["deviation"] else ""
        cells = [row["table"], row["row"], mean, "", "", row["shows"]]
        if row["low"]:
            cells[3] = f"{float(row['difference']):+.{digits}f}"
            cells[4] = f"{float(row['low']):+.{digits}f} to {float(row['high']):+.{digits}f}"
        cells.append(f"{float(row['gap']):.{digits}f}" if row["gap"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    head = f"| table | row | {rows[0]['measure']} | to unchanged | 95 % interval | shown | training - test |"
    return "\n".join([head, "|---" * 7 + "|", *lines])


def summary() -> str:
    """One line per data set: AMuSE, the linear model, the best other network, and what AMuSE's differences show."""
    lines = ["| data | AMuSE | against | their score | difference | AMuSE is |", "|---" * 6 + "|"]
    runs = read_runs()
    for data, about in SETS.items():
        own = {name: scores for (of, name), scores in runs.items() if of == data}
        if AMUSE not in own or len(own[AMUSE].pooled) == 1:
            continue
        ours = own.pop(AMUSE)
        for name, scores in _rivals(own):
            by, interval, verdict = difference_cells(ours, scores)
            cells = [about.title, spread(ours, 0), name, spread(scores, 0), f"{by} ({interval})", verdict]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rivals(runs: dict[str, CrossValidation]) -> Iterable[tuple[str, CrossValidation]]:
    """The linear model, concatenation, the best single stream and the best published fusion."""
    groups = [
        [LINEAR],
        [CONCAT],
        [name for name in runs if name.endswith(" alone") or name.startswith(f"{LINEAR} on ")],
        list(RIVALS),
    ]
    for names in groups:
        found = [name for name in dict.fromkeys(names) if name in runs]
        if found:
            best = max(found, key=lambda name: mean(runs[name]))
            yield best, runs[best]


def difference_cells(ours: CrossValidation, theirs: CrossValidation) -> list[str]:
    """Mean difference, its interval, and a word, over the folds that both have."""
    d, digits = difference(ours, theirs), 3 if ours.measure == "Pearson r" else 2
    words = {"helps": "better", "hurts": "worse", "not shown": "not shown to differ"}
    interval = f"{d.low:+.{digits}f} to {d.high:+.{digits}f}"
    return [f"{d.mean:+.{digits}f}", interval, words[d.verdict]]


def difference(ours: CrossValidation, theirs: CrossValidation) -> Difference:
    """Fold by fold, corrected for overlapping training parts; seed by seed on a fixed split."""
    if not ours.folds:
        count = min(len(ours.pooled), len(theirs.pooled))
        return paired_difference([a for a, _ in ours.pooled[:count]], [b for b, _ in theirs.pooled[:count]])
    first, second = ({(f.grouping, f.fold): f for f in run.folds} for run in (ours, theirs))
    shared = sorted(first.keys() & second.keys())
    share = statistics.fmean(first[key].test / first[key].train for key in shared)
    return paired_difference([first[key].score for key in shared], [second[key].score for key in shared], share)


def mean(scores: CrossValidation) -> float:
    return statistics.fmean(pair[0] for pair in scores.pooled)


def spread(scores: CrossValidation, column: int) -> str:
    """Mean and sample deviation over groupings or seeds; how many, if there are not five."""
    digits = 3 if scores.measure == "Pearson r" else 2
    values = [pair[column] for pair in scores.pooled]
    text = f"{statistics.fmean(values):.{digits}f}"
    text += f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return text if len(values) == 5 else f"{text} ({len(values)} grouping{'s' * (len(values) > 1)})"
