"""The bench of the cache, at toy size."""

import json

from benchmarks.cache import main


def test_both_ways_write_the_same_in_the_same_passes_and_the_cache_sends_less(tmp_path, capsys):
    lines = tmp_path / "figures.jsonl"
    settings = ["--shapes", "toy", "--lengths", "16", "32", "--blocks", "4", "32", "--batches", "1", "3"]
    measurements = main([*settings, "--repeats", "1", "--json", str(lines)])
    assert len(measurements) == len(lines.read_text().splitlines()) == 8
    for one, line in zip(measurements, lines.read_text().splitlines(), strict=True):
        assert one.same
        assert one.whole is not None
        assert json.loads(line)["cached"]["sent"] == one.cached.sent
        assert one.passes == (one.length // 4 if one.block == 4 else 2)
        assert one.whole.sent == one.passes * one.batch * one.length
        # the first block alone, and then each with the one before
        blocks = one.length // one.block
        assert one.cached.sent == (one.batch * 4 * (2 * blocks - 1) if one.block == 4 else one.whole.sent)
    assert "tokens/s" in capsys.readouterr().out


def test_the_cache_alone(capsys):
    (one,) = main(
        ["--shapes", "toy", "--lengths", "16", "--blocks", "4", "--batches", "2", "--repeats", "2", "--alone"]
    )
    assert one.whole is one.same is None
    assert one.cached.sent == 2 * (4 + 3 * 8)
    assert "–" in capsys.readouterr().out
