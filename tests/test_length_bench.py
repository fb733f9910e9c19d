"""The table of benchmarks/length.py."""

from benchmarks.length import table


def test_seeds_of_a_rule_are_one_line_with_their_mean_least_and_greatest():
    real = {"texts": 4, "perplexity": 3.0, "mean": 9.0, "distance": 1.0}
    rows = [
        {**real, "length": "grown", "sampler": "ancestral", "seed": seed, "length_nfe": 14, "nfe": nfe, "seconds": 0.5}
        for seed, nfe in enumerate([30, 31, 35])
    ]
    lines = table({"novels": {"longest": 128, "real": [real], "rows": rows}}).splitlines()
    assert lines[2:] == [
        "| novels | real text |  | 4 |  |  | 3.00 | 9.0 | 1.0 |  |",
        "| novels | ancestral | grown | 4 | 14.00 | 32.0 (30.0 to 35.0) | 3.00 | 9.0 | 1.0 | 0.50 |",
    ]
