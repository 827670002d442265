"""The command line through a process of its own: one line and status 2 for every mistake, no traceback."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

VERB = """
    \"\"\"A verb that prints what it was given.\"\"\"
    from absl import flags
    from iiblpo_jax import cli
    from iiblpo_jax.common.errors import InputError

    flags.DEFINE_string("out", "", "A flag of the verb's own.")

    def main(config, workdir):
        if config.train.steps == 13:
            raise InputError("thirteen steps;\\n use twelve")
        print(config.train.steps, config.eval.k, config.eval.greedy, config.optim.lr, config.psa.half_life,
              config.update.minibatches, config.checkpoint.best,
              dict(config.task.options), workdir, flags.FLAGS.out)

    if __name__ == "__main__":
        cli.run(main)
"""
CONFIG = """
    from iiblpo_jax.defaults import default_config

    def get_config():
        c = default_config()
        c.train.steps = 3
        c.task.options = {"k_min": 2}
        return c
"""


@pytest.fixture
def run(tmp_path):
    """run(*arguments) -> finished process of a tiny verb; `ok.py` is a config beside it."""
    (tmp_path / "verb.py").write_text(textwrap.dedent(VERB))
    (tmp_path / "ok.py").write_text(textwrap.dedent(CONFIG))
    (tmp_path / "empty.py").write_text("")

    def call(*arguments, env: dict | None = None):
        root = str(Path(__file__).parents[1])
        return subprocess.run(
            [sys.executable, "verb.py", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "IIBLPO_CACHE": "", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


OK = ("--config=ok.py", "--workdir=w")


def test_half_a_description_of_several_processes_is_one_line_too(run):
    done = run(*OK, env={"IIBLPO_NUM_PROCESSES": "2"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: IIBLPO_NUM_PROCESSES set without IIBLPO_COORDINATOR and IIBLPO_PROCESS_ID;")
    assert done.stderr.count("\n") == 1


def test_overrides_of_every_type(run):
    done = run(
        *OK,
        "--config.train.steps=7",
        "--config.eval.k=1,2",
        "--noconfig.eval.greedy",
        "--config.optim.lr",
        "1e-3",
        "--config.psa.half_life=inf",
        "--config.update.minibatches=2",
        "--config.checkpoint.best",
        "False",
        "--config.task.options.k_max=5",
        "--out=there",
    )
    assert done.stdout.split("\n")[0] == "7 (1, 2) False 0.001 inf 2 False {'k_max': 5, 'k_min': 2} w there", (
        done.stderr
    )
    assert done.returncode == 0


def test_the_config_of_the_workdir_is_used_where_none_is_given(run, tmp_path):
    from iiblpo_jax.config import defaults, files

    config = defaults.default_config()
    config.train.steps = 41
    files.save(config, tmp_path / "w")
    assert run("--workdir=w").stdout.startswith("41 ")
    assert run("--workdir=w", "--config.train.steps=42").stdout.startswith("42 ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*OK, "--config.train.stepz=7"), "unknown config key train.stepz; did you mean train.steps?"),
        ((*OK, "--config.foo.bar=7"), "unknown config key foo.bar; known sections: a"),
        ((*OK, "--config.train.steps=many"), "--config.train.steps=many: train.steps takes a whole number"),
        ((*OK, "--config.objective.clip_low=x"), "--config.objective.clip_low=x: objective.clip_low takes a number"),
        ((*OK, "--config.eval.greedy=7"), "--config.eval.greedy=7: eval.greedy takes True or False"),
        ((*OK, "--config.train=7"), "train is a section of the config; set its keys one by one"),
        ((*OK, "--config.train.steps"), "--config.train.steps has no value; write --config.train.steps=VALUE"),
        ((*OK, "--config.branch.points=shred"), "branch.points = 'shred' (did you mean shared?); use one of"),
        ((*OK, "--config.train.steps=2.5"), "--config.train.steps=2.5: train.steps takes a whole number, 1 or more"),
        ((*OK, "--config.optim.lr=nan"), "optim.lr = nan; use a number, 0 or more"),
        ((*OK, "--config.eval.k=1,x"), "--config.eval.k=1,x: eval.k takes a list such as 1,2, each 1 or more"),
        ((*OK, "--config.objective.name=grop"), "objective.name = 'grop' (did you mean grpo?); use one of "),
        ((*OK, "--config.eval.greedy", "maybe"), "--config.eval.greedy=maybe: eval.greedy takes True or False"),
        ((*OK, "--config.train.steps=13"), "thirteen steps; use twelve"),
        ((*OK, "--workdri=w"), "Unknown command line flag 'workdri'. Did you mean: workdir"),
        ((*OK, "extra"), "unexpected argument 'extra'; every argument is a flag"),
        (("--config=ok.py",), "no workdir; pass --workdir=DIR"),
        (("--config=ok.py", "--workdir=ok.py"), "workdir ok.py is a file; give a folder"),
        (("--workdir=w",), "w/config.json does not exist; give the workdir of a run, or --config=FILE"),
        (("--config=absent.py", "--workdir=w"), "config file absent.py does not exist; give"),
        (("--config=okk.py", "--workdir=w"), "config file okk.py does not exist; did you mean ok.py?"),
        ((*OK, "--config.task.name=arithmetik"), "unknown task 'arithmetik' (did you mean arithmetic?); choose one of"),
        ((*OK, "--config.eval.tasks=sums,aime2"), "unknown task 'aime2' (did you mean aime25?); choose one of"),
        ((*OK, "--config.task.options.k_mx=3"), "task 'arithmetic' has no option k_mx (did you mean k_max?); it has"),
        ((*OK, "--config.task.options.k_max=x"), "task 'arithmetic': option k_max = 'x'; use a whole number"),
        (("--config=empty.py", "--workdir=w"), "config file empty.py has no get_config(); add one"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, arguments, message):
    done = run(*arguments)
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.returncode == 2 and done.stdout == ""


def test_all_mistakes_are_one_line_together(run):
    mistakes = "train.stepz=7", "train.steps=many", "optim.lr=-1", "rollout.refill_at=99"
    done = run(*OK, *(f"--config.{mistake}" for mistake in mistakes))
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: 4 mistakes: (1) unknown config key train.stepz; did you mean train.steps?; (2)"
    )
    for part in ("steps=many: train.steps takes a whole", "optim.lr = -1.0; use 0 or", "refill_at = 99 exceeds"):
        assert part in done.stderr


BEGIN = "from iiblpo_jax.defaults import default_config\ndef get_config():\n    c = default_config()"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config(:", "config file bad.py line 1: SyntaxError"),
        ("import absent", "config file bad.py line 1: ModuleNotFoundError: No module named 'absent'"),
        ("def get_config():\n    return 3", "get_config() of bad.py returned a int; return default_config()"),
        (
            f"{BEGIN}\n    c.train.stepz = 1",
            "config file bad.py line 4: unknown config key stepz; did you mean latent.steps or train.steps?",
        ),
        (f"{BEGIN}\n    c.trian.steps = 1", "config file bad.py line 4: unknown config key trian; did you mean train?"),
        (f"{BEGIN}\n    c.task.name = 3", "config file bad.py line 4: name = 3; task.name takes a text and objective."),
        (f"{BEGIN}\n    c.train = 3", "config file bad.py line 4: train is a section of the config; set its keys one"),
        (f"{BEGIN}\n    del c.train.steps", "config file bad.py line 4: keys can be set, not added, deleted or named"),
        (f"{BEGIN}\n    c['train.steps'] = 1", "config file bad.py line 4: keys can be set, not added, deleted or"),
    ],
)
def test_a_broken_config_file_is_one_line_with_its_place(run, tmp_path, body, message):
    (tmp_path / "bad.py").write_text(body + "\n")
    done = run("--config=bad.py", "--workdir=w")
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1 and done.returncode == 2 and "ConfigDict" not in done.stderr[80:]


def test_help_names_the_verb_and_its_flags(run):
    done = run("--help")
    assert done.returncode == 0
    for text in ("A verb that prints what it was given.", "--out", "--workdir", "--config.SECTION.KEY=VALUE"):
        assert text in done.stdout
    assert "docs/configuration.md lists them all" in done.stdout


def test_a_command_line_is_refused_before_jax_is_loaded(tmp_path):
    """And before data: neither is there, nor what takes seconds to import, when a name has been looked up."""
    heavy = "jax grain sympy math_verify reasoning_gym transformers pyarrow"
    code = f"""
import sys
from iiblpo_jax import cli
for name in ("arithmetik", "gym:chainsum", "math"):
    try:
        cli.parse(["verb", "--config={tmp_path}/ok.py", "--workdir=w", f"--config.task.name={{name}}"])
    except cli.InputError as error:
        print(error)
print([name for name in "{heavy}".split() if name in sys.modules])
"""
    (tmp_path / "ok.py").write_text(textwrap.dedent(CONFIG).replace('c.task.options = {"k_min": 2}', ""))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("unknown task 'arithmetik' (did you mean arithmetic?)") and done.stdout.endswith(
        "[]\n"
    )


def test_compiled_programs_are_kept_where_the_environment_says(run, tmp_path):
    verb = (tmp_path / "verb.py").read_text()
    compiles = "    import jax; jax.jit(lambda x: x + 1)(1)"
    verb = verb.replace("def main(config, workdir):", f"def main(config, workdir):\n{compiles}")
    (tmp_path / "verb.py").write_text(verb)
    for cache, found in (("", False), (str(tmp_path / "cache"), True)):
        done = run(*OK, env={"IIBLPO_CACHE": cache, "JAX_PLATFORMS": "cpu"})
        assert done.returncode == 0, done.stderr
        assert any((tmp_path / "cache").glob("*")) == found
