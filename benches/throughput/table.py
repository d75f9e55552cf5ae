#!/usr/bin/env python3
"""The table of scripts/throughput.sh: medians, and the median of the ratios of neighbouring runs. Argument: throughput.jsonl."""

import json
import statistics
import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        runs = [json.loads(line) for line in file]
    # One of each engine, in the order run, is a pair.
    pairs = list(zip(runs[::2], runs[1::2]))
    cases = {}
    for ours, theirs in pairs:
        if ours["engine"] != "burn" or not theirs["engine"].startswith("pytorch"):
            sys.exit("error: the runs are not in turns")
        if (ours["weights"], ours["batch"]) != (theirs["weights"], theirs["batch"]):
            sys.exit("error: a pair is of two cases")
        cases.setdefault((ours["weights"], ours["batch"]), []).append((ours, theirs))
    ours, theirs = pairs[0]
    print(
        f"ResNet-8, images a second: adcorda on {ours['device']}, {theirs['engine']} {theirs['version']} on "
        f"{theirs['device_name']}; {ours['threads']} and {theirs['threads']} threads. Medians of {len(next(iter(cases.values())))} "
        "runs in turns; the ratio is the median over pairs of runs (above 1: adcorda is faster), with its range.\n"
    )
    print("| weights | batch | | adcorda | PyTorch | ratio |")
    print("|---|---|---|---|---|---|")
    for (weights, batch), runs in cases.items():
        for key, what in (("forward", "forward"), ("training", "training step"), ("attack", "attack step")):
            a, b = ([run[side][key]["images_per_second"] for run in runs] for side in (0, 1))
            ratios = sorted(x / y for x, y in zip(a, b))
            print(
                f"| {weights} | {batch} | {what} | {statistics.median(a):,.0f} | {statistics.median(b):,.0f} | "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            )


if __name__ == "__main__":
    main()
