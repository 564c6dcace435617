"""`python -m commonweight.devnet.pack DIR`: packs this Python's library sources into DIR, and says what came of it.

A process of its own, because packing imports torch and the devnet's own process doesn't.
"""

import sys

from commonweight.events import emit, log_to_stdout


def main() -> None:
    from commonweight.model.corpus import build_dataset, default_corpus
    from commonweight.model.tokenizer import ByteTokenizer

    log_to_stdout()
    manifest = build_dataset(default_corpus(), sys.argv[1], ByteTokenizer())
    emit("data.packed", manifest=manifest.hash, tokens=manifest.tokens, documents=manifest.documents)


if __name__ == "__main__":
    main()
