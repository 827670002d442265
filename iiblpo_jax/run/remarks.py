"""What a run says of its own learning, in a line each."""

from collections.abc import Mapping

from iiblpo_jax.update.optimizer import Schedule


def nothing_learned(step: int, steps: int, metrics: Mapping[str, float]) -> str:
    """Why the last steps taught nothing, and what to change.

    Args:
      step: the last one.
      steps: how many in a row.
      metrics: of the last step.
    """
    if metrics["reward/pass@group"] == 0 and metrics["reward/mean"] == 0:
        found = "every response scored 0"
        mend = (
            "see in rollouts/ whether responses end, and as the task wants them; use easier problems, a larger "
            "rollout.max_tokens or more rollout.roots"
        )
    elif metrics["reward/pass@1"] == 1:
        found, mend = "every response was right", "use harder problems, or stop here"
    elif metrics["reward/frac_zero_std"] == 1:
        found = "the responses to each prompt scored alike"
        mend = "use more rollout.roots, a higher rollout.temperature or problems of another difficulty"
    else:
        found = "responses to a prompt differed in reward, and no token of them counted or none had an advantage"
        mend = "see ib.filter, ib.keep, advantage.weight and branch.prefix_loss"
    return (
        f"step {step}: train.max_empty_steps = {steps} steps in a row had nothing to learn from, no token that "
        f"counts or no advantage but 0: {found}; {mend}. The same command goes on after step {step}, which is saved"
    )


def schedule_moved(now: Schedule, before: int, moved: int) -> str:
    """That a resumed run has a cosine of another length than it began with; empty if it has not.

    Args:
      now: of this run.
      before: rollouts after which the cosine of the checkpoint's run was 0.
      moved: rollouts behind it.
    """
    if now.kind != "cosine" or now.decay_steps == before:
        return ""
    return (
        f"the cosine of the learning rate ends after {now.decay_steps} rollouts, before it was {before}: after {moved} "
        f"of them the rate is {float(now.rate(moved)):.3g}; set optim.decay_steps={before} to keep it as it was"
    )
