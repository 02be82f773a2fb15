"""Run the benchmarks, each in a process of its own: ``make bench``; some: ``make bench BENCH="growth install"``."""

import subprocess
import sys
import time
from pathlib import Path

import report


def main(asked: list[str]) -> int:
    """Run those asked for, or all, and write README.md's measured parts and the figure. The exit status."""
    unknown = set(asked) - set(report.BENCHMARKS)
    if unknown:
        print(f"no benchmark is named {', '.join(sorted(unknown))}; there are {', '.join(report.BENCHMARKS)}")
        return 2
    began, failed = time.monotonic(), []
    for name in asked or report.BENCHMARKS:
        print(f"\n=== {name}", flush=True)
        if subprocess.run([sys.executable, Path(__file__).with_name(f"{name}.py")], check=False).returncode:
            failed.append(name)
    report.write()
    print(f"\n{time.monotonic() - began:.0f} s in all. The table is in {report.README}, the figure in {report.FIGURE}")
    if failed:
        print(f"failed, so their results are those of before: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
