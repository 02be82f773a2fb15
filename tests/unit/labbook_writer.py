"""A process that writes into a lab book, for the tests of several writers and of killed ones.

Usage: labbook_writer.py BOOK NAME COUNT
Each experiment that is wholly in the book is acknowledged with a line. A COUNT of 0 means: until killed.
"""

import itertools
import sys
from pathlib import Path

from lab_utils.labbook import Book


def main(path: str, name: str, count: int) -> None:
    print("ready", flush=True)
    sys.stdin.readline()  # all writers begin at the same moment
    for number in itertools.islice(itertools.count(), count or None):
        with Book(Path(path)).experiment(name, f"run {number}", predicted=[1, 2, 4], writer=name) as e:
            e.series("measured", [1, 2, 4])
        print(e.id, number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
