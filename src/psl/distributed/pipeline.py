"""The pipeline's own entry, beside `psl.distributed.run`."""


def run_pipeline(model: str, dataset: str = "digits", **options):
    """Return ``psl.distributed.run("pipeline", …)``."""
    from psl.distributed.launch import run

    return run("pipeline", model, dataset, **options)
