#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A language model as fp32, bf16, bitsandbytes' int8 and int8q's: accuracy, speed, memory and LoRA, in one process.

    bench/language_model.py --model build/demo-lm/model --text build/demo-lm/debian-faq.txt --json language_model.json

accuracy   perplexity, and the mean KL divergence in nats of each position's distribution from fp32's, 32 x 512 tokens of
           the text; also of LLM.int8() in float64 (lm_contenders.ReferenceLinear) in a model that is fp32 else, or bf16
prefill    1 x 512 tokens without a cache, logits of every position
decode     32 tokens one by one behind a prompt of 64, with the cache
lora       forward, backward and AdamW's step on 4 x 256 tokens; adapters of rank 8 on q, k, v and o, in peft
memory     bytes of parameters and buffers; the most of anonymous memory that loading in a process of its own takes

Contenders take turns in each round, each behind a call that is not counted, and again where other processes took CPU
time; medians. int8 models compute in bf16.
INT8Q_LIBRARY chooses the library.
"""

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

PHASES = ("accuracy", "prefill", "decode", "memory", "lora")
CHUNK = 512
PROMPT, DECODED = 64, 32
LORA_BATCH, LORA_LENGTH = 4, 256
# OpenMP's threads spin for some milliseconds after a parallel region, on the core that the next contender's second thread
# needs.
PAUSE_S = 0.05
# A call during which other processes took more than this share of one CPU is measured again.
MOST_OF_OTHERS, MAX_REPEATS = 0.1, 20
QUESTION = "What is the capital of France, and what is it known for?"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of float safetensors with a tokenizer")
    parser.add_argument("--text", required=True, help="file of plain text, 16384 tokens or more")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="default: all")
    parser.add_argument("--chunks", type=int, default=32, help="of 512 tokens, for accuracy (default 32)")
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="of prefill and decode (default 7)")
    parser.add_argument("--lora-rounds", type=int, default=3, help="default 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", help="as torch names it (default: cuda where there is one, else cpu)")
    parser.add_argument("--json", help="store the results in this file")
    parser.add_argument("--load-only", metavar="CONTENDER", help=argparse.SUPPRESS)  # the child of `memory`
    return parser.parse_args()


def show(text):
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- Accuracy


def measure_accuracy(models, ids, chunks):
    """name -> {"perplexity", "kl", "kl_error"}; models holds fp32 first, whose distributions the others' are compared with.

    kl_error: standard error, over positions, of the difference of kl from the last model's. What rounds otherwise ends in
    other codes some layers later, so that two evaluations of the same definition differ by about as much.
    """
    import torch
    from tqdm import tqdm

    kl, nll = ({name: [] for name in models} for _ in range(2))
    for chunk in tqdm(ids[: chunks * CHUNK].view(chunks, 1, CHUNK), "accuracy"):
        for name, model in models.items():
            log_p = model(chunk, use_cache=False).logits[0].double().log_softmax(-1)
            if name == "fp32":
                expected = log_p
            kl[name].append((expected.exp() * (expected - log_p)).sum(-1))
            nll[name].append(-torch.gather(log_p[:-1], 1, chunk[0, 1:, None]))
    kl = {name: torch.cat(values) for name, values in kl.items()}
    results = {}
    for name, values in kl.items():
        difference = values - kl[list(models)[-1]]
        results[name] = {
            "perplexity": torch.cat(nll[name]).mean().exp().item(),
            "kl": values.mean().item(),
            "kl_error": (difference.std() / math.sqrt(len(difference))).item(),
        }
    return results


# ---------------------------------------------------------------------------------------------------- Speed


def cpu_seconds():
    """(of all processes, of this one) since they began."""
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def finish_on_gpu():
    """Waits for what was put on a GPU."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def undisturbed(call):
    """(seconds that the call returns, how often it was repeated because others took CPU time meanwhile)."""
    repeats = 0
    while True:
        all_before, own_before = cpu_seconds()
        start = time.perf_counter()
        seconds = call()
        elapsed = time.perf_counter() - start
        all_after, own_after = cpu_seconds()
        others = (all_after - all_before) - (own_after - own_before)
        if others < MOST_OF_OTHERS * elapsed + 0.03 or repeats == MAX_REPEATS:  # the clocks tick in steps of 10 ms
            return seconds, repeats
        repeats += 1


def take_turns(what, calls, rounds):
    """{"samples_s": name -> seconds of each round, "repeats": how many calls were repeated}; calls as of undisturbed()."""
    from tqdm import tqdm

    samples, repeats = {name: [] for name in calls}, 0
    for _ in tqdm(range(rounds), what):
        for name, call in calls.items():
            time.sleep(PAUSE_S)
            call()
            seconds, repeated = undisturbed(call)
            samples[name].append(seconds)
            repeats += repeated
    return {"samples_s": samples, "repeats": repeats}


def prefill_call(model, ids):
    def call():
        start = time.perf_counter()
        model(ids, use_cache=False)
        finish_on_gpu()
        return time.perf_counter() - start

    return call


def decode_call(model, ids):
    """Greedily; the prompt's own time does not count."""

    def call():
        output = model(ids, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        finish_on_gpu()
        start = time.perf_counter()
        for _ in range(DECODED):
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        finish_on_gpu()
        return time.perf_counter() - start

    return call


def lora_call(model, ids):
    """A model in training with adapters, and a call that makes one step."""
    import torch
    from peft import LoraConfig, get_peft_model

    import int8q.peft  # noqa: F401  get_peft_model then knows Linear8bit

    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses = []

    def call():
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        finish_on_gpu()
        seconds = time.perf_counter() - start
        losses.append(loss.item())
        return seconds

    return call, losses


def measure_speed(models, ids, args):
    """phase -> {"tokens", "samples_s", "repeats"}; lora also "losses"."""
    import torch

    results = {}
    with torch.no_grad():
        if "prefill" in args.phases:
            calls = {name: prefill_call(model, ids[None, :CHUNK]) for name, model in models.items()}
            results["prefill"] = {"tokens": CHUNK, **take_turns("prefill", calls, args.rounds)}
        if "decode" in args.phases:
            calls = {name: decode_call(model, ids[None, :PROMPT]) for name, model in models.items()}
            results["decode"] = {"tokens": DECODED, **take_turns("decode", calls, args.rounds)}
    if "lora" in args.phases:
        tokens = LORA_BATCH * LORA_LENGTH
        batch = ids[:tokens].view(LORA_BATCH, LORA_LENGTH)
        made = {name: lora_call(model, batch) for name, model in models.items()}
        turns = take_turns("lora", {name: call for name, (call, _) in made.items()}, args.lora_rounds)
        losses = {name: losses for name, (_, losses) in made.items()}
        results["lora"] = {"tokens": tokens, **turns, "losses": losses}
    return results


# ---------------------------------------------------------------------------------------------------- Memory


def anonymous_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:"))


def load_only(args):
    """Imports, says so, loads once a line comes, says so, and waits to be told to end."""
    import torch
    from lm_contenders import CONTENDERS

    if args.load_only == "int8q":
        import int8q.transformers  # noqa: F401
    torch.set_num_threads(args.threads)
    # What transformers imports at its first model of a kind is not the model's.
    import transformers.models.llama.modeling_llama  # noqa: F401

    for message in ("imported", "loaded"):
        if message == "loaded":
            model = CONTENDERS[args.load_only](args.model, args.device)
            gc.collect()
        print(message, flush=True)
        sys.stdin.readline()
    del model


def measure_memory(name, args):
    """The most and the last of RssAnon while a process loads the model, less what it had before."""
    command = [sys.executable, __file__, "--model", args.model, "--text", args.text, "--threads", str(args.threads)]
    command += ["--device", args.device]
    child = subprocess.Popen(
        [*command, "--load-only", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        if child.stdout.readline() != "imported\n":
            raise RuntimeError(f"loading {name} in a process of its own failed")
        before = most = anonymous_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        os.set_blocking(child.stdout.fileno(), False)
        while child.poll() is None and not child.stdout.readline():
            most = max(most, anonymous_bytes(child.pid))
            time.sleep(0.001)
        if child.poll() is not None:
            raise RuntimeError(f"loading {name} in a process of its own failed")
        return {"peak_bytes": most - before, "after_bytes": anonymous_bytes(child.pid) - before}
    finally:
        child.stdin.close()
        child.wait()


# ---------------------------------------------------------------------------------------------------- Report


def tokens_per_second(phase, name):
    return phase["tokens"] / statistics.median(phase["samples_s"][name])


def table(results):
    from tabulate import tabulate

    names = list(results["footprint_bytes"])
    rows = []
    for name in list(results.get("accuracy", names)):
        row = {"": name}
        if "accuracy" in results:
            error = results["accuracy"][name]["kl_error"]
            row["KL"] = f"{results['accuracy'][name]['kl']:.4f}" + (f" ± {error:.4f}" if error and name != "fp32" else "")
            row["perplexity"] = f"{results['accuracy'][name]['perplexity']:.3f}"
        if name in names:
            for phase in ("prefill", "decode", "lora"):
                if phase in results:
                    row[f"{phase}, tok/s"] = f"{tokens_per_second(results[phase], name):.4g}"
            row["model, MB"] = f"{results['footprint_bytes'][name] / 1e6:.0f}"
            if "memory" in results:
                row["peak of loading, MB"] = f"{results['memory'][name]['peak_bytes'] / 1e6:.0f}"
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def ratios(results):
    """int8q's tokens a second, times those of the others."""
    lines = []
    for phase in ("prefill", "decode", "lora"):
        if phase in results and "int8q" in results[phase]["samples_s"]:
            ours = tokens_per_second(results[phase], "int8q")
            others = [name for name in results[phase]["samples_s"] if name != "int8q"]
            texts = (f"{ours / tokens_per_second(results[phase], name):.2f} x {name}" for name in others)
            lines.append(f"{phase}: int8q runs at " + ", ".join(texts))
    return "\n".join(lines)


def generate(model, tokenizer):
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs.to(model.device), max_new_tokens=64, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(args):
    import torch
    from lm_contenders import CONTENDERS, FOR_ACCURACY
    from transformers import AutoTokenizer

    from int8q._packed import why_no_gpu

    args.device = args.device or ("cpu" if why_no_gpu() else "cuda")
    warnings.simplefilter("ignore", FutureWarning)  # transformers renames arguments
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(Path(args.text).read_text(encoding="utf-8"), return_tensors="pt").input_ids[0].to(args.device)
    results = {}
    names = args.contenders or list(CONTENDERS)
    if "memory" in args.phases:
        show("memory: each model is loaded in a process of its own")
        results["memory"] = {name: measure_memory(name, args) for name in names}
    models = {name: CONTENDERS[name](args.model, args.device) for name in names}
    results["footprint_bytes"] = {name: model.get_memory_footprint() for name, model in models.items()}
    if "int8q" in models:
        with torch.no_grad():
            results["generated"] = generate(models["int8q"], tokenizer)
        print(f"int8q, asked: {QUESTION}\n{results['generated']}\n", flush=True)
    if "accuracy" in args.phases:
        others = {name: load(args.model, args.device) for name, load in FOR_ACCURACY.items()}
        with torch.no_grad():
            results["accuracy"] = measure_accuracy({**models, **others}, ids, args.chunks)
    results |= measure_speed(models, ids, args)
    return results


def main():
    args = parse_arguments()
    os.environ["INT8Q_NUM_THREADS"] = str(args.threads)
    if args.load_only:
        load_only(args)
        return
    results = measure(args)
    from machine import describe_machine, describe_process, torch_versions

    from int8q import _abi

    machine = describe_machine()
    origin_file = Path(args.model) / "origin.json"
    origin = (
        json.loads(origin_file.read_text(encoding="utf-8")) if origin_file.exists() else {"file": Path(args.model).name}
    )
    where = f"{machine['cpu']}, {args.threads} threads"
    if args.device != "cpu":
        import torch

        where = machine["gpu"] = torch.cuda.get_device_name(args.device)
    print(f"{origin['file']} ({', '.join(origin.get('tensors', {}))}), {where}\n")
    print(table(results))
    print("\n" + ratios(results))
    if args.json:
        library = _abi.library()
        record = {
            **describe_process(library.path, library.int8q_version_string().decode(), torch_versions()),
            "machine": machine,
            "threads": args.threads,
            "device": args.device,
            "model": origin,
            **results,
        }
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
