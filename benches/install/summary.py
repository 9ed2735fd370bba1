"""From records of runs to a table, ratios, and the last line."""
import statistics

import limits


def of_rate(records, rate):
    return [record for record in records if record["record"] == "run" and record["rate"] == rate]


def median_of(runs, key):
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def shown(value, form):
    return "-" if value is None else form.format(value)


def table(records):
    """Markdown; one row for each rate and variant."""
    rows = [["MB/s per connection", "variant", "n (quiet)", "wall s, median (min-max)", "quiet wall s", "processor s",
             "server's processor s", "memory MB", "written GB", "ratio to apt"]]
    for rate in dict.fromkeys(record["rate"] for record in records if record["record"] == "run"):
        runs = of_rate(records, rate)
        for variant in dict.fromkeys(run["variant"] for run in runs):
            mine = [run for run in runs if run["variant"] == variant]
            quiet = [run for run in mine if not run["noisy"]]
            walls = [run["wall"] for run in mine]
            ratios = pair_ratios(runs, variant)
            rows.append([
                str(rate // 10 ** 6) if rate else "no limit", variant, f"{len(mine)} ({len(quiet)})",
                f"{statistics.median(walls):.1f} ({min(walls):.1f}-{max(walls):.1f})", shown(median_of(quiet, "wall"), "{:.1f}"),
                shown(median_of(mine, "cpu"), "{:.1f}"), shown(median_of(mine, "server_cpu"), "{:.1f}"),
                f"{max(run['peak_memory'] for run in mine) / 1e6:.0f}", f"{median_of(mine, 'disk_written') / 1e9:.2f}",
                f"{statistics.median(ratios):.2f} (pairs: {' '.join(f'{ratio:.2f}' for ratio in ratios)})" if ratios else "-"])
    return "\n".join(f"| {' | '.join(row)} |" + ("\n" + "|---" * len(row) + "|" if number == 0 else "")
                     for number, row in enumerate(rows))


def pair_ratios(runs, variant):
    """Wall of `variant` over wall of plain apt in the same round, for each round that has both."""
    walls = {(run["variant"], run["round"]): run["wall"] for run in runs}
    return [walls[variant, number] / walls["apt", number] for number in sorted({run["round"] for run in runs})
            if variant != "apt" and (variant, number) in walls and ("apt", number) in walls]


def connections(runs):
    """The most that the agent used at once; 16 where it fetched nothing by itself."""
    reports = [run["report"] for run in runs if run.get("report", {}).get("fetched")]
    return max((report["fetched"].get("connections", 16) for report in reports), default=16)


def last_line(records, rate):
    """ratio=OURS/APT limit-share=… n=PAIRS, medians."""
    runs = of_rate(records, rate)
    ratios = pair_ratios(runs, "ours")
    ours = [run["wall"] for run in runs if run["variant"] == "ours"]
    limit = next(record for record in records if record["record"] == "limit")
    if not ratios:
        return "ratio=- limit-share=- n=0"
    share = limits.seconds(limit, rate, connections(runs)) / statistics.median(ours)
    return f"ratio={statistics.median(ratios):.3f} limit-share={share:.2f} n={len(ratios)}"
