"""`python -m benchmarks.coverage` at a smaller size: intervals contain the truth about as often as they say."""

from benchmarks.coverage import coverage


def test_intervals_of_perplexities_contain_the_truth_on_the_oracle():
    found = list(coverage(40, samples=64, truth=5000, bootstrap=200, cases=["dilated, 4 steps, farther temperatures"]))
    assert [one.figure for one in found] == [
        "real text", "temperature 1", "at the unigram entropy of real text", "at the bigram entropy of real text",
    ]  # fmt: skip
    for one in found:
        assert one.repetitions >= 38, "a curve between 0.6 and 1.5 reaches real text"
        assert one.covered / one.repetitions >= 0.85
        assert one.covered + one.below + one.above == one.repetitions
        assert 0 < one.width < (0.8 if "unigram" in one.figure else 0.15)
