"""Getting and reading a cohort: bundles against single files, 700 methylation files, a cohort's text files.

``python -m benchmarks.cohort`` prints a table and, as its last line, one JSON object, which it also writes to
``book/results/cohort.json`` with date, machine and versions. The server is the stand-in of the tests in a process of
its own, so no network is involved; a latency per request can be added to imitate a distant one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from hcmae.files import write_json

REPO = Path(__file__).resolve().parent.parent
SMALL_FILES, SMALL_BYTES = 2000, 50_000  # a miRNA file has 50 kB
BETA_FILES, BETA_ROWS = 700, 450_000


def bundles(folder: Path, latency: float, count: int) -> dict[str, float]:
    """Seconds for ``count`` small files one by one and in bundles of 100, and the median ratio per hundred."""
    from hcmae.gdc.client import GDCClient
    from hcmae.gdc.transfer import RemoteFile, download, download_bundle
    from tests.support.gdc_server import generated

    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.gdc_server", str(count), str(SMALL_BYTES), str(latency)],
        stdout=subprocess.PIPE, text=True, cwd=REPO,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        made = generated(count, SMALL_BYTES)

        def files(name: str) -> list[RemoteFile]:
            return [
                RemoteFile(i, hashlib.md5(c, usedforsecurity=False).hexdigest(), len(c), folder / name / i / n, n)
                for i, n, c in made
            ]

        with GDCClient(url=url, mirror="") as client:
            one, many = files("one"), files("many")
            # In turns of a hundred files, so that whatever else the machine does slows both alike.
            single, bundled = [], []
            for i in range(0, count, 100):
                start = time.perf_counter()
                failures = download_bundle(client, many[i : i + 100])
                bundled.append(time.perf_counter() - start)
                assert not failures, failures
                start = time.perf_counter()
                for file in one[i : i + 100]:
                    download(client, file)
                single.append(time.perf_counter() - start)
        assert all(a.target.read_bytes() == b.target.read_bytes() for a, b in zip(one, many, strict=True))
    finally:
        server.kill()
        server.wait()
    ratio = float(np.median(np.divide(single, bundled)))
    return {"one_by_one_s": sum(single), "bundles_s": sum(bundled), "speedup": ratio}


def _read_betas(folder: str, out: Any) -> None:
    from hcmae.omics.readers import stack_betas

    paths = sorted(Path(folder).glob("*.txt"))
    start = time.perf_counter()
    matrix, names = stack_betas(paths)
    seconds = time.perf_counter() - start
    assert matrix.shape == (BETA_FILES, len(names))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    out.put({"seconds": seconds, "peak_gib": peak / 2**30, "probes": len(names), "matrix_gib": matrix.nbytes / 2**30})


def betas(folder: Path) -> dict[str, float]:
    """Seconds and peak memory of a process that reads 700 SeSAMe files of 450,000 rows into one matrix."""
    rng = np.random.default_rng(0)
    names = [f"cg{n:08d}" for n in range(BETA_ROWS)]
    sources = []
    for k in range(4):
        values = rng.beta(0.5, 0.5, BETA_ROWS)
        missing = rng.uniform(size=BETA_ROWS) < 0.1
        path = folder / f"source-{k}"
        path.write_text(
            "".join(
                f"{n}\tNA\n" if gone else f"{n}\t{v:.17g}\n" for n, v, gone in zip(names, values, missing, strict=True)
            )
        )
        sources.append(path)
    for i in range(BETA_FILES):
        os.link(sources[i % 4], folder / f"{i:04d}.txt")
    context = multiprocessing.get_context("spawn")
    out: Any = context.Queue()
    process = context.Process(target=_read_betas, args=(str(folder), out))
    process.start()
    result: dict[str, float] = out.get(timeout=900)
    process.join()
    return result


def counts(folder: Path, patients: int) -> dict[str, float]:
    """Seconds to read full-size STAR and miRNA files of some patients (60,660 genes; 1,881 miRNAs)."""
    from hcmae.omics.readers import read_mirna_counts, read_star_counts

    rng = np.random.default_rng(0)
    head = "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\tstranded_first\tstranded_second"
    head += "\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
    head += "".join(f"N_{n}\t\t\t1\t1\t1\t\t\t\n" for n in ("unmapped", "multimapping", "noFeature", "ambiguous"))
    star, mirna = folder / "star.tsv", folder / "mirna.txt"
    star.write_text(
        head
        + "".join(
            f"ENSG{i:011d}.5\tGENE{i}\tprotein_coding\t{c}\t{c // 2}\t{c - c // 2}\t{c / 7:.4f}\t{c / 9:.4f}\t0.5\n"
            for i, c in enumerate(rng.integers(0, 20_000, 60_660).tolist())
        )
    )
    mirna.write_text(
        "miRNA_ID\tread_count\treads_per_million_miRNA_mapped\tcross-mapped\n"
        + "".join(f"hsa-mir-{i}\t{c}\t{c / 3:.6f}\tN\n" for i, c in enumerate(rng.integers(0, 9999, 1881).tolist()))
    )
    start = time.perf_counter()
    for i in range(patients):
        read_star_counts(star, annotation=i == 0)
    genes = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(patients):
        read_mirna_counts(mirna)
    return {
        "star_ms_per_file": 1e3 * genes / patients,
        "mirna_ms_per_file": 1e3 * (time.perf_counter() - start) / patients,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REPO / "book" / "results" / "cohort.json")
    parser.add_argument(
        "--latency", type=float, default=0.02, help="seconds added per request in the second comparison"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        near = bundles(folder / "near", 0.0, SMALL_FILES)
        far = bundles(folder / "far", arguments.latency, SMALL_FILES // 4)
        (folder / "betas").mkdir()
        beta = betas(folder / "betas")
        files = counts(folder, 50)
    result = {
        # The plain comparison: this machine's own server, no latency added.
        "bundle_speedup": round(near["speedup"], 2),
        "bundle_speedup_with_latency": round(far["speedup"], 2),
        "latency_s": arguments.latency,
        "small_files": SMALL_FILES,
        "one_by_one_s": round(near["one_by_one_s"], 2),
        "bundles_s": round(near["bundles_s"], 2),
        "betas_700_peak_gib": round(beta["peak_gib"], 3),
        "betas_700_matrix_gib": round(beta["matrix_gib"], 3),
        "betas_700_s": round(beta["seconds"], 1),
        "star_ms_per_file": round(files["star_ms_per_file"], 1),
        "mirna_ms_per_file": round(files["mirna_ms_per_file"], 2),
    }
    print("| what | value |\n|---|---|")
    for name, value in result.items():
        print(f"| {name} | {value} |")
    stamp = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("httpx", "pyarrow", "numpy")},
        },
    }
    write_json(arguments.out, result | stamp)
    print(json.dumps(result | stamp))


if __name__ == "__main__":
    main()
