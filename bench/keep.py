"""Keep the results of a run under bench/results/, without raw samples, logs and local paths.

python bench/keep.py runs/minilm-sst2-block
"""

import argparse
import re
import sys
from pathlib import Path

from compressor.files import read_json, write_json
from compressor.report.markdown import public


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="of the file and in the table; by default the recipe's")
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    results = read_json(options.run / "results.json")
    results.pop("training")
    results = public(results)
    for variant in results["variants"].values():
        variant["structure"] = [
            {name: len(part["kept"]) if isinstance(part, dict) else part for name, part in layer.items()}
            for layer in variant["structure"]["layers"]
        ]
    results["command"] = re.sub(r"(?<=[ =])(?:~|\.\.)?/\S*/", ".../", results["command"])
    target = options.output / f"{(options.name or results['name']).replace('-', '_')}.json"
    write_json(target, results)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
