"""What is said of rollouts that teach nothing, and of a cosine that goes on with another length."""

import pytest

from iiblpo_jax.run.remarks import nothing_learned, schedule_moved
from iiblpo_jax.update.optimizer import Schedule


@pytest.mark.parametrize(
    ("mean", "right", "group", "flat", "words"),
    [
        (0.0, 0.0, 0.0, 1.0, "every response scored 0; see in rollouts/"),
        (1.0, 1.0, 1.0, 1.0, "every response was right; use harder problems, or stop here"),
        (0.5, 0.5, 0.5, 1.0, "the responses to each prompt scored alike; use more rollout.roots"),
        (0.1, 0.0, 0.0, 1.0, "the responses to each prompt scored alike"),  # partial credit, the same for all
        (
            0.5,
            0.5,
            1.0,
            0.0,
            "differed in reward, and no token of them counted or none had an advantage; see ib.filter",
        ),
    ],
)
def test_why_nothing_was_learnt_and_what_to_change(mean, right, group, flat, words):
    metrics = {"reward/mean": mean, "reward/pass@1": right, "reward/pass@group": group, "reward/frac_zero_std": flat}
    line = nothing_learned(40, 20, metrics)
    assert (
        line.startswith("step 40: train.max_empty_steps = 20 steps in a row had nothing to learn from")
        and words in line
    )
    assert line.endswith("The same command goes on after step 40, which is saved") and "\n" not in line


def test_a_cosine_of_another_length_is_said():
    """Half of 1000 rollouts done: half of the peak; a quarter of 2000: cos(pi / 4)."""
    now = Schedule(peak=1e-6, kind="cosine", decay_steps=2000)
    line = schedule_moved(now, 1000, 500)
    assert "ends after 2000 rollouts, before it was 1000: after 500 of them the rate is 8.54e-07" in line
    assert line.endswith("set optim.decay_steps=1000 to keep it as it was")
    assert schedule_moved(now, 2000, 500) == schedule_moved(Schedule(peak=1e-6, decay_steps=2000), 1000, 500) == ""
