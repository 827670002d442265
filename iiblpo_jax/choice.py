"""The flag of the verbs that take a checkpoint of a workdir: which one."""

from absl import flags

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "Which checkpoint of the workdir: latest, best (by mean pass@1), or the number of a step."
)
