"""The command `upfield`. It imports only the stage of the given verb, so `upfield --help` answers at once."""

import sys
from importlib import import_module

VERBS = {
    "phantom": ("upfield.sharding.phantom", "write a cohort of phantoms to try the commands on"),
    "shard": ("upfield.sharding.shard", "build a set of WebDataset shards from NIfTI files, or extend one"),
    "verify": ("upfield.sharding.verify", "check a shard set for missing and damaged files"),
    "audit": ("upfield.sharding.audit", "compare the synthetic low field of a set with real scans"),
    "preview": ("upfield.sharding.preview", "show pairs of low and high field, as a picture or a page"),
    "train": ("upfield.distributed.train", "train the AMIR network on a shard set"),
    "evaluate": ("upfield.evaluation.evaluate", "compare models with cubic interpolation on held-out subjects"),
    "tune": ("upfield.tune.sweep", "search for better training settings with Ray Tune"),
    "export": ("upfield.export.to_onnx", "write the best model of a run as one ONNX file"),
    "enhance": ("upfield.export.enhance", "enhance scans: NIfTI in, NIfTI out"),
    "serve": ("upfield.export.serve", "enhance scans over HTTP"),
    "models": ("upfield.export.models", "list the models that come with the package"),
    "demo": ("upfield.cli.demo", "run every step on phantoms and write a report"),
}


# The headings of the help, each with its verbs in the order in which they are used.
ROAD = {
    "Make a training set": ("phantom", "shard", "verify", "preview", "audit"),
    "Train a model": ("train", "evaluate", "tune"),
    "Use a model": ("export", "enhance", "serve", "models"),
    "See every step at work": ("demo",),
}
EXAMPLE = """\
  upfield phantom cohort
  upfield shard --config cohort/cohorts.yaml --out shards
  upfield train --data.shards shards --run.out run --model.preset tiny
  upfield evaluate run --shards shards --out evaluation
  upfield export run --out model.onnx
  upfield enhance scan.nii.gz --out enhanced.nii.gz --model model.onnx"""


def main(argv: list[str] | None = None) -> int:
    """Run `upfield VERB ...` and return its exit code."""
    if argv is None:
        from upfield.common.environment.settling import use_utf8

        use_utf8()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    verb, *rest = arguments
    if verb == "help":
        return main([*rest[:1], "--help"])
    if verb == "--version":
        from importlib.metadata import version

        print(f"upfield {version('upfield')}")
        return 0
    if verb not in VERBS:
        print(f"upfield: error: {_refusal(verb)}", file=sys.stderr)
        return 2
    return import_module(VERBS[verb][0]).main(rest)


def _refusal(word: str) -> str:
    """Return what is wrong with a first argument that is no verb."""
    from upfield.common.grammar.suggestions import nearest
    from upfield.common.places import SCAN_SUFFIXES

    if word.startswith("-"):
        return f"expected a verb before {word}, as in `upfield train {word}`. Run `upfield` to list the verbs."
    if word.lower().endswith(SCAN_SUFFIXES):
        return f"{word}: expected a verb, found a scan. Write upfield enhance {word} --out enhanced.nii.gz."
    # A script may have another name than its verb, such as tune/sweep.py.
    scripts = {module.rpartition(".")[2]: verb for verb, (module, _) in VERBS.items()}
    hint = f" (did you mean {scripts[word]}?)" if word in scripts else nearest(word, VERBS)
    return f"unknown verb {word}{hint}. Run `upfield` to list the verbs."


def _help() -> str:
    lines = ["usage: upfield VERB [ARGUMENTS] [--config FILE.yaml] [--KEY VALUE ...]", ""]
    lines += ["Enhance portable 64 mT brain MRI: from cohorts of scans to a trained model and", "enhanced scans."]
    for heading, verbs in ROAD.items():
        lines += ["", f"{heading}:", *(f"  {verb:<9} {VERBS[verb][1]}" for verb in verbs)]
    lines += ["", "Example:", EXAMPLE, ""]
    lines += ["`upfield VERB --help` lists the keys of a verb. Each key is a flag and a key", "of a YAML file."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
