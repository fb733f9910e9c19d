"""Task benches that two cores can train: prompts, completions to learn, and answers to check.

    python -m benchmarks.tasks sums --out data/sums --train 100000
    python -m benchmarks.tasks sudoku --out data/sudoku
    python -m benchmarks.tasks gsm8k --source GSM8K --out data/gsm8k
    python -m benchmarks.tasks texts --model TEACHER --prompts data/sums/train.jsonl --length 27 --out data/sums-teacher

The first three write train.jsonl, with the columns ``prompt`` and ``completion``, and test.jsonl, with ``prompt`` and
``answer``. No prompt of the test is one of the training's. The last one writes a train.jsonl whose completions are a
model's own: of several right ones always the same. With ``--right TASK`` only those that are right are kept.
"""
