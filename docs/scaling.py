"""Seconds of an update on N GPUs, by the sizes of the run and what the machines can do. Prints the table of docs/scaling.md.

    python3 docs/scaling.py                       # that table
    python3 docs/scaling.py --help                # other models, batches, networks

An update is the slowest rank's gradients and their sum over all ranks. A ring moves 2 (N - 1) / N of the gradients'
bytes through every link, in 2 (N - 1) steps. Inside a machine the link is the GPUs' own, between machines the network; a ring
over several machines goes as fast as its slowest link.

As `--devices` and `mpi` work now, no gradient goes through the GPUs' link: each is copied to the host, added up there, and copied
back. --adding is what the processor's memory allows there: measured, see docs/scaling.md. --host 0 is a sum on the GPUs.
"""

import argparse

# Name: parameters of the base, trained ones (LoRA path; l2d-core/tests/fixtures/parity/param_counts.json).
MODELS = {
    "Llama-3.2-1B": (1.236e9, 73_344_256),
    "Llama-3.1-8B": (8.030e9, 281_036_032),
}


def update(base, trained, sequences, tokens, rate, ranks, per_machine, inside, network, latency, host, adding):
    """Seconds of gradients and of their sum. AdamW is the same on every rank and left out."""
    # Main pass forward, diffusion path forward and back to its inputs: three passes of 2 operations a weight and token.
    # Every token of a sequence is taken as labelled: an upper bound.
    gradients = 6 * (base + trained) * sequences / ranks * tokens / rate
    size = 4 * trained
    link = inside if ranks <= per_machine else min(inside, network)
    if ranks == 1:
        return gradients, 0.0
    if not host:
        return gradients, 2 * (ranks - 1) / ranks * size / link + 2 * (ranks - 1) * latency
    # Down to the host and up again, and the sum there; between machines also the network.
    total = 2 * size / host + size / adding
    machines = -(-ranks // per_machine)
    if machines > 1:
        total += 2 * (ranks - 1) / ranks * size / network + 2 * (ranks - 1) * latency
    return gradients, total


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = lambda name, default, text: arguments.add_argument(name, type=float, default=default, help=f"{text} [{default:g}]")
    number("--sequences", 32, "sequences of a batch of all ranks together, where it is not grown")
    number("--tokens", 800, "tokens of a sequence, on average")
    number("--rate", 400e12, "matrix operations a second of a GPU that are kept up")
    number("--inside", 200e9, "bytes a second of the link between GPUs of a machine")
    number("--network", 40e9, "bytes a second of the network, for each GPU")
    number("--latency", 10e-6, "seconds of one step of the ring")
    number("--host", 20e9, "bytes a second between GPU and host; 0 where the sum stays on the GPUs (NCCL)")
    number("--adding", 0.9e9, "bytes of gradients a second that the ranks of a machine add up in the host's memory")
    number("--machine", 8, "GPUs of a machine")
    given = arguments.parse_args()
    print("| model | GPUs | batch | bytes a GPU sends | gradients, s | sum, s | efficiency | tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (base, trained) in MODELS.items():
        for grown in (False, True):
            for ranks in (1, 8, 64, 512):
                # A batch has a sequence for each rank at least.
                sequences = given.sequences * ranks if grown else max(given.sequences, ranks)
                if grown and ranks == 1:
                    continue
                cost = lambda n, batch: update(
                    base, trained, batch, given.tokens, given.rate, n, int(given.machine), given.inside, given.network,
                    given.latency, given.host, given.adding,
                )
                gradients, total = cost(ranks, sequences)
                alone = sum(cost(1, sequences))
                seconds = gradients + total
                sent = 2 * (ranks - 1) / ranks * 4 * trained
                print(
                    f"| {name} | {ranks} | {int(sequences)} | {sent / 1e6:.0f} MB | {gradients:.3f} | {total:.3f} "
                    f"| {100 * alone / (ranks * seconds):.0f} % | {sequences * given.tokens / seconds:,.0f} |"
                )


main()
