"""Reads the table of answer pairs that our tests hold and tells where Hugging Face's math-verify judges otherwise.

    pip install "math-verify[antlr4_11_0]==0.9.0"

    python math_pairs.py l2d-eval/tests/fixtures/math_pairs.tsv

math-verify takes the gold answer first and is not symmetric; a pair counts as equal for it if it is so either way round.
"""

import sys

from math_verify import parse, verify


def main(path):
    agree, other = 0, []
    for line in open(path, encoding="utf-8"):
        if line.startswith("#"):
            continue
        a, b, kind, reason = line.rstrip("\n").split("\t")
        one, two = (parse(f"${text}$") for text in (a, b))
        equal = bool(verify(one, two) or verify(two, one))
        if equal == (kind == "equal"):
            agree += 1
        else:
            other.append(f"{kind:8} here: {a}   {b}   ({reason})")
    print(f"{agree} of {agree + len(other)} pairs alike")
    print("\n".join(other))


if __name__ == "__main__":
    main(sys.argv[1])
