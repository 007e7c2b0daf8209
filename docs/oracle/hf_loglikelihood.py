"""Multiple-choice log-likelihoods of a GGUF model, as lm-evaluation-harness computes them.

The harness itself scores: its task files, its prompts, its few-shot sampler and its HFLM. Only two
things are replaced: where the rows come from (local parquet files instead of the hub), and the
tokenizer. The tokenizer is built here from the GGUF's own vocabulary and merges, because transformers'
conversion of a GGUF tokenizer ignores `tokenizer.ggml.pre` and `tokenizer.ggml.add_bos_token`, and so
puts a beginning-of-sequence token before texts of models that have none.

    pip install "lm_eval==0.4.13" "torch==2.5.1" "transformers==4.46.3" "datasets>=3,<4" gguf accelerate

    python hf_loglikelihood.py --task arc_easy --limit 600 --gguf model.gguf --data data --out arc_easy.jsonl

DATA has one folder a data set, split and config as on the hub, `/` in the name replaced by `__`:
`allenai__ai2_arc/ARC-Easy/test-*.parquet`. Tasks: arc_easy, arc_challenge, piqa, mmlu_SUBJECT.
`--out` gets one JSON object a row; the totals, the harness's own, go to the standard output.
"""

import argparse
import glob
import json
import os


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="arc_easy, arc_challenge, piqa or mmlu_SUBJECT")
    parser.add_argument("--gguf", required=True, help="the model, a llama-style GGUF file")
    parser.add_argument("--data", required=True, help="the folder of data sets")
    parser.add_argument("--limit", type=int, help="only the first so many rows of the split")
    parser.add_argument("--shots", type=int, default=0, help="solved examples before the question")
    parser.add_argument("--out", help="where to write the rows, JSON lines")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=0, help="write the prompt of the first so many rows, too")
    parser.add_argument("--shots-too", action="store_true", help="write which rows were the shots, too")
    parser.add_argument("--bos", action="store_true", help="put the beginning-of-sequence token first")
    return parser.parse_args()


def tokenizer(path, bos):
    """A byte-level BPE tokenizer with the GGUF's vocabulary and the pre-tokenizer it names."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(path).fields

    def texts(key):
        field = fields[key]
        return [bytes(field.parts[part]).decode() for part in field.data]

    def scalar(key):
        return fields[key].parts[fields[key].data[0]]

    vocabulary = texts("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in texts("tokenizer.ggml.merges")]
    kinds = fields["tokenizer.ggml.token_type"]
    control = [text for text, part in zip(vocabulary, kinds.data) if int(kinds.parts[part][0]) == 3]
    inner = Tokenizer(models.BPE({text: i for i, text in enumerate(vocabulary)}, merges))
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    name = bytes(scalar("tokenizer.ggml.pre")).decode()
    if name == "smollm":
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of_words])
    elif name in ("gpt-2", "default"):
        inner.pre_tokenizer = bytes_of_words
    else:
        raise SystemExit(f"the pre-tokenizer {name} is not one this script knows")
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
    begin, end = (vocabulary[int(scalar(f"tokenizer.ggml.{which}_token_id")[0])] for which in ("bos", "eos"))
    if bos:
        inner.post_processor = TemplateProcessing(f"{begin} $A", special_tokens=[(begin, vocabulary.index(begin))])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token=end, pad_token=end)


def task_config(name, data):
    """The harness's task of this name, with its rows from local files."""
    from datasets import DatasetDict, load_dataset
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if name.startswith("arc_"):
        folder = "allenai__ai2_arc/" + {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}[name]
        splits, other = ("train", "validation", "test"), {}
    elif name == "piqa":
        # Without shots the train split is not needed; the validation split is what is scored.
        folder, splits, other = "ybisk__piqa/plain_text", ("validation",), {"training_split": None}
    elif name.startswith("mmlu_"):
        folder, splits, other = "cais__mmlu/all", ("dev", "test"), {}
    else:
        raise SystemExit(f"no task {name}")

    def rows(**_):
        files = {split: sorted(glob.glob(os.path.join(data, folder, f"{split}-*.parquet"))) for split in splits}
        loaded = {split: load_dataset("parquet", data_files={split: paths}, split=split) for split, paths in files.items()}
        if name.startswith("mmlu_"):
            subject = name.removeprefix("mmlu_")
            loaded = {split: part.filter(lambda row: row["subject"] == subject) for split, part in loaded.items()}
        return DatasetDict(loaded)

    return {**load_yaml(TaskManager().task_index[name].yaml_path), "custom_dataset": rows, **other}


def main():
    args = parse()
    assert args.task != "piqa" or not args.shots, "piqa's shots come from its train split, which is not read here"
    import torch
    from gguf import GGUFReader
    from lm_eval import simple_evaluate
    from lm_eval.api import samplers
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM
    drawn = []
    for sampler in (samplers.ContextSampler, samplers.FirstNSampler):
        def watched(self, *given, _own=sampler.sample, **named):
            shots = _own(self, *given, **named)
            drawn.append([self.df.index(shot) for shot in shots])
            return shots
        sampler.sample = watched

    folder, file = os.path.split(os.path.abspath(args.gguf))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, torch_dtype=torch.float32)
    if "output.weight" not in {tensor.name for tensor in GGUFReader(args.gguf).tensors}:
        # The embedding is the head, too. transformers 4.46.3 leaves a random head there.
        model.config.tie_word_embeddings = True
        model.tie_weights()
    words = tokenizer(args.gguf, args.bos)
    lm = HFLM(pretrained=model, tokenizer=words, batch_size=args.batch, device="cpu")
    result = simple_evaluate(
        model=lm, tasks=[task_config(args.task, args.data)], num_fewshot=args.shots, limit=args.limit,
        bootstrap_iters=0, log_samples=True,
    )
    samples = sorted(result["samples"][args.task], key=lambda sample: sample["doc_id"])
    if args.out:
        with open(args.out, "w") as out:
            for at, sample in enumerate(samples):
                line = {"row": sample["doc_id"], "loglikelihoods": [float(answer[0]) for answer in sample["filtered_resps"]]}
                line |= {metric: sample[metric] for metric in ("acc", "acc_norm") if metric in sample}
                line["gold"] = int(sample["target"])
                if args.shots_too and args.shots:
                    line["shots"] = drawn[at]
                if at < args.prompts:
                    line["prompt"], line["continuations"] = sample["arguments"][0][0], [a[1] for a in sample["arguments"]]
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    totals = {key: value for key, value in result["results"][args.task].items() if "," in key and "stderr" not in key}
    print(json.dumps({"task": args.task, "rows": len(samples), "shots": args.shots, **totals}))


if __name__ == "__main__":
    main()
