"""The command `upfield`. It imports only the stage of the given verb, so `upfield --help` answers at once."""

import sys
from importlib import import_module

VERBS = {
    "phantom": ("upfield.sharding.phantom", "write a cohort of phantoms, from the MNI152 template or from label maps"),
    "shard": ("upfield.sharding.shard", "build WebDataset shards from cohorts of NIfTI files, or extend a set"),
    "verify": ("upfield.sharding.verify", "check a shard set against its manifest and index"),
    "audit": ("upfield.sharding.audit", "compare the synthetic low field of a set with real low-field scans"),
    "preview": ("upfield.sharding.preview", "show pairs of a shard set, as a picture or a page with sliders"),
    "train": ("upfield.distributed.train", "train AMIR on a shard set, on one or many processes"),
    "evaluate": ("upfield.evaluation.evaluate", "compare a run or an ONNX file with cubic interpolation"),
    "tune": ("upfield.tune.sweep", "search training configurations with Ray Tune"),
    "export": ("upfield.export.to_onnx", "write the best model of a run as one ONNX file"),
    "enhance": ("upfield.export.enhance", "enhance scans: NIfTI in, NIfTI out"),
    "serve": ("upfield.export.serve", "enhance scans over HTTP"),
    "models": ("upfield.export.models", "list the models that come with the package, with their cards"),
    "demo": ("upfield.cli.demo", "run every stage on phantoms and write a report"),
}


def main(argv: list[str] | None = None) -> int:
    """Run `upfield VERB ...` and return its exit code."""
    if argv is None:
        from upfield.common.environment.settling import use_utf8

        use_utf8()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    verb, *rest = arguments
    if verb == "--version":
        from importlib.metadata import version

        print(f"upfield {version('upfield')}")
        return 0
    if verb not in VERBS:
        from upfield.common.grammar.configuration_errors import nearest

        known = ", ".join(VERBS)
        print(f"upfield: error: unknown verb {verb}{nearest(verb, VERBS)}. Known verbs: {known}.", file=sys.stderr)
        return 2
    return import_module(VERBS[verb][0]).main(rest)


def _help() -> str:
    lines = ["usage: upfield VERB [ARGUMENTS] [--config FILE.yaml] [--KEY VALUE ...]", ""]
    lines += ["Enhance portable 64 mT brain MRI: from cohorts of NIfTI files to an ONNX model and enhanced scans.", ""]
    lines += [f"  {verb:<9} {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join([*lines, "", "`upfield VERB --help` lists the keys of a verb. Each key is a flag and a YAML key."])


if __name__ == "__main__":
    sys.exit(main())
