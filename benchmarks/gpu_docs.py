"""The manual's page on GPUs, docs/gpu.md, and its charts, from the cards' results in benchmarks/results/gpu/.

    python benchmarks/gpu_docs.py [--check]

Results come from `maskrcnn bench --gpu-report`. --check writes nothing and ends with status 1 where the page is not
what the results make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maskrcnn.bench.card_file import read_report
from maskrcnn.bench.gpu_page import batch_chart, docs_page, throughput_chart
from maskrcnn.charts import as_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"


def outputs() -> dict[Path, str]:
    """Text of each file that the results make."""
    reports = [read_report(path) for path in sorted(RESULTS.glob("*.json"))]
    return {
        ROOT / "docs" / "gpu.md": docs_page(reports),
        ROOT / "docs" / "images" / "gpu_throughput.svg": as_file(throughput_chart(reports)),
        ROOT / "docs" / "images" / "gpu_largest_batch.svg": as_file(batch_chart(reports)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if not check:
            path.write_text(outputs()[path])
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
